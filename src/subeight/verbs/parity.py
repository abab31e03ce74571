"""Loading back what was written: in plain transformers, in a fresh process, against our own streamed logits."""

from pathlib import Path
from typing import Any

import psutil
import torch

from subeight.errors import ParityError
from subeight.evals.passes import Computing, context_length, run_pass
from subeight.export import check
from subeight.export.gguf import Placed
from subeight.export.gguf_read_back import require_same_weights
from subeight.export.parity import set_aside
from subeight.models.model import Model
from subeight.text import Batch
from subeight.verbs.session import Session

TOKENS = 48
# Of a config, what decides about the logits.
_COMPUTED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "hidden_act", "hidden_activation",
    "attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "layer_types", "query_pre_attn_scalar",
)  # fmt: skip
BOUND = 2e-3  # of the logits' spread: two float32 implementations in another order of sums


def verified(directory: Path, session: Session) -> dict[str, Any]:
    """Compares the checkpoint's logits with ours on fixed token ids, both in float32.

    A checkpoint whose dequantized weights do not fit into memory is not loaded whole; the record says so.

    Raises:
        ParityError: they differ by more than the bound; the directory is set aside.
    """
    return _same_logits(directory, session.model(str(directory)), session)


def verified_gguf(path: Path, source: Model, placed: list[Placed], session: Session) -> dict[str, Any]:
    """Compares every weight of a GGUF file with the checkpoint that it was written from, bit for bit, and its logits
    in plain transformers with ours.

    Where transformers does not read from GGUF all that the config says (a scaled rotary embedding), the logits are not
    compared, and the record says so.

    Raises:
        ParityError: a weight or a logit differs; the file is set aside.
    """
    try:
        compared = require_same_weights(path, source, placed)
    except ParityError as error:
        raise ParityError(f"{error} It was renamed to {set_aside(path)}.") from error
    found = {"same_weights": compared}
    model = session.model(str(path))
    other = [name for name in _COMPUTED if not _alike(_said(source, name), _said(model, name))]
    if other:
        return {**found, "skipped": f"transformers does not read {', '.join(other)} of this config from a GGUF file"}
    return {**found, **_same_logits(path, model, session)}


def _said(model: Model, name: str) -> Any:
    return getattr(model.config, name, None)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * abs(one)  # float32 in the file
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return bool(one == other)


def _same_logits(directory: Path, model: Model, session: Session) -> dict[str, Any]:
    if model.codes is not None and any(linear.whole for linear in model.linears):
        return {
            "skipped": "its experts are stored one by one, as vLLM loads them, and the model of transformers has them "
            "in one tensor; evaluate it with our reader, or in the engine"
        }
    needed = 5 * sum(parameter.numel() for parameter in model.skeleton.model.parameters())
    allowed = session.options.max_memory or psutil.virtual_memory().available
    if needed > allowed:
        return {
            "skipped": f"loading it whole in float32 takes {needed:,} bytes and {allowed:,} are allowed; "
            "evaluate it by streaming, or check it on a larger machine"
        }
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, min(TOKENS, context_length(model))), generator=generator)
    expected = _logits(model, ids)
    spread = float(expected.std())
    return check(directory, ids, expected, BOUND * max(spread, 1.0), threads=torch.get_num_threads()).to_dict()


def _logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    # Every position is wanted: one column in front, since a state is taken before each scored token.
    scored = torch.ones(ids.shape[0], ids.shape[1] + 1, dtype=torch.bool)
    scored[:, 0] = False
    padded = torch.cat([ids, ids[:, :1]], 1)
    lengths = torch.full((ids.shape[0],), padded.shape[1])
    batch = Batch(padded, scored, lengths, tuple(range(ids.shape[0])))
    computing = Computing(torch.float32, torch.device("cpu"), quiet=True)
    made = run_pass(model, [batch], computing, "Checking what was written")
    return made.head(made.hidden[0]).view(*ids.shape, -1)
