"""Loading back what was written: in plain transformers, in a fresh process, against our own streamed logits."""

from pathlib import Path
from typing import Any

import psutil
import torch

from subeight.evals.passes import Computing, context_length, run_pass
from subeight.export import check
from subeight.models.model import Model
from subeight.text import Batch
from subeight.verbs.session import Session

TOKENS = 48
BOUND = 2e-3  # of the logits' spread: two float32 implementations in another order of sums


def verified(directory: Path, session: Session) -> dict[str, Any]:
    """Compares the checkpoint's logits with ours on fixed token ids, both in float32.

    A checkpoint whose dequantized weights do not fit into memory is not loaded whole; the record says so.

    Raises:
        ParityError: they differ by more than the bound; the directory is set aside.
    """
    model = session.model(str(directory))
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
