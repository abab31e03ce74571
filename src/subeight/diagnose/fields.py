"""Config fields that change what a model computes, compared between candidate and baseline, and tried one at a time.

A field is guilty when the same checkpoint, opened with the baseline's value, loses less.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from subeight.diagnose.case import Case
from subeight.diagnose.finding import Cause
from subeight.diagnose.question import Part, explains, percent
from subeight.errors import ModelError
from subeight.evals.loss import Loss, recovered
from subeight.models.model import Model

# What training, storage and generation need, and names: none of it changes the function.
_COSMETIC = {
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "tie_word_embeddings",  # the tensors tell: a head that is not the embeddings is found there
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
_TRAINING = ("dropout", "_pdrop", "_drop")
_MOST = 8  # fields that are tried


@dataclass(frozen=True)
class FieldDifference:
    """A field that differs, and the change that gives the candidate the baseline's value."""

    field: str
    baseline: Any
    candidate: Any
    path: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"field": f"config.{self.field}", "baseline": self.baseline, "candidate": self.candidate}


def config_differences(baseline: PreTrainedConfig, candidate: PreTrainedConfig, longest: int) -> list[FieldDifference]:
    """The differing fields that can change the function; `longest` is the length of the longest prompt."""
    ours, theirs = (_flat(config.get_text_config(decoder=True).to_dict()) for config in (baseline, candidate))
    found = []
    for path in sorted(ours.keys() | theirs.keys()):
        a, c = ours.get(path), theirs.get(path)
        if path[0] in _COSMETIC or path[0].endswith(_TRAINING) or _same(a, c):
            continue
        if path[0] == "max_position_embeddings" and longest <= min(a or 0, c or 0) and not _scaled(ours, theirs):
            continue
        found.append(FieldDifference(_classic(path), a, c, path))
    return found


def _flat(content: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
            found |= _flat(value, (*path, name))
        else:
            found[(*path, name)] = value
    return found


def _same(a: Any, c: Any) -> bool:
    if isinstance(a, float) and isinstance(c, float | int) and not isinstance(c, bool):
        return abs(a - c) <= 1e-6 * max(abs(a), abs(c))  # GGUF keeps them in float32
    return bool(a == c)


def _scaled(*flats: Mapping[tuple[str, ...], Any]) -> bool:
    """Whether the rope of one of them is scaled, which may depend on the longest position."""
    kinds = {value for flat in flats for path, value in flat.items() if path[-1] in ("rope_type", "type")}
    return bool(kinds - {"default", None})


def _classic(path: tuple[str, ...]) -> str:
    """The flat name of a field: `rope_theta` for `rope_parameters.rope_theta`."""
    if path[0] != "rope_parameters" or len(path) > 2:
        return ".".join(path)
    return path[1] if path[1] in ("rope_theta", "partial_rotary_factor") else f"rope_scaling.{path[-1]}"


def changes_for(candidate: PreTrainedConfig, differences: list[FieldDifference]) -> dict[str, Any]:
    """The changes of the candidate's config that give these fields the baseline's values."""
    content = candidate.get_text_config(decoder=True).to_dict()
    changes: dict[str, Any] = {}
    for difference in differences:
        head, *rest = difference.path
        if not rest:
            changes[head] = difference.baseline
            continue
        changes[head] = changes.get(head, content.get(head) or {})
        changes[head] = _placed(changes[head], rest, difference.baseline)
    return changes


def _placed(content: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    if rest:
        return {**content, head: _placed(content.get(head) or {}, rest, value)}
    if value is None:
        return {key: kept for key, kept in content.items() if key != head}
    return {**content, head: value}


def examine_fields(case: Case) -> tuple[Part, Case]:
    """Opens the candidate with the baseline's value of each differing field, one at a time, and measures it."""
    longest = max(len(sample.ids) for sample in case.question.sequences.samples)
    differences = config_differences(case.baseline.config, case.candidate.config, longest)
    details = {"fields": [difference.to_dict() for difference in differences]}
    if not differences:
        return Part((), details, ("No config field that changes the function differs.",)), case
    guilty, causes, cost = [], [], 0
    mended: tuple[Model, Loss] | None = None
    for difference in differences[:_MOST]:
        changed = _opened(case.candidate, [difference])
        if changed is None:
            continue
        after = case.measure(changed)
        share = recovered(case.loss, after, case.whole, case.settings.seed)
        cost += 1
        if explains(share):
            mended = changed, after
            guilty.append(difference)
            causes.append(_cause(difference, share))
    if mended is not None:
        if len(guilty) > 1 and (repaired := _opened(case.candidate, guilty)) is not None:
            mended, cost = (repaired, case.measure(repaired)), cost + 1
        return Part(tuple(causes), details, (), cost), case.with_repair(mended[1], candidate=mended[0])
    named = ", ".join(difference.field for difference in differences)
    return Part((), details, (f"The config differs in {named}, which does not explain the loss.",), cost), case


def _opened(candidate: Model, differences: list[FieldDifference]) -> Model | None:
    """The candidate with other fields; None where its tensors do not fit them."""
    try:
        return candidate.with_config(changes_for(candidate.config, differences))
    except ModelError:
        return None


def _cause(difference: FieldDifference, share: Any) -> Cause:
    sentence = (
        f"config.{difference.field} is {difference.candidate} where the baseline has {difference.baseline}; with the "
        f"baseline's value the candidate recovers {percent(share.value)} of the loss."
    )
    place = f"config.{difference.field}"
    return Cause("baseline", "config", (place,), sentence, share, {"config": {difference.field: difference.baseline}})
