"""Is the candidate asked the same question? Its tokenizer, beginning of texts, chat template and generation settings.

What differs is put right one thing after the other, and the candidate is asked again: a difference that does not
touch the prompts, or does not explain the loss, is told but not guilty.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from subeight.diagnose.case import Case
from subeight.diagnose.cutting import Dressed, as_used, cut_alike, differing, own_tokenizer
from subeight.diagnose.finding import Cause
from subeight.evals.loss import recovered
from subeight.evals.stats import Interval
from subeight.models.model import Model
from subeight.text import EvaluationSet
from subeight.text.tokens import Tokenizer, prefix_of

NAMED = 0.1  # a share of the loss that is worth naming
_SETTINGS = ("_from_model_config", "transformers_version", "_commit_hash")


@dataclass(frozen=True)
class Part:
    """What one part of an examination found: causes, what it saw, what it says, and what it cost."""

    causes: tuple[Cause, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    evaluations: int = 0
    block_forwards: float = 0.0


def explains(share: Interval) -> bool:
    """Whether an experiment recovered a share of the loss that is worth naming, and surely some."""
    return share.value >= NAMED and share.low > 0


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def examine_question(case: Case) -> tuple[Part, Case]:
    """Asks the candidate with the baseline's template, beginning and tokenizer in turn, where they change the ids."""
    settings = generation_differences(case.baseline, case.candidate)
    details: dict[str, Any] = {"generation": settings}
    words = [_settings_words(settings, case.settings.metric)] if settings else []
    tokenizer = own_tokenizer(case.candidate)
    if tokenizer is None:
        details["tokenizer"] = None
        words.append(f"{case.candidate.label} has no tokenizer of its own, so it was asked with the baseline's.")
        return Part((), details, tuple(words)), case
    reference = case.baseline.tokenizer()
    own = cut_alike(case.question, case.sources, tokenizer)
    details |= compare_tokenizers(reference, tokenizer)
    changed = differing(case.question, own)
    details["prompts_that_differ"] = len(changed)
    if not changed:
        words.insert(0, _same_words(details))
        return Part((), details, tuple(words)), case
    details["first_difference"] = _first(case, own, changed[0])
    causes, cost, case = _put_right(case, reference, tokenizer)
    if not causes:
        words.insert(0, f"{len(changed)} prompts have other ids, which does not explain the loss.")
    return Part(causes, details, tuple(words), cost), case


def _put_right(case: Case, reference: Tokenizer, tokenizer: Tokenizer) -> tuple[tuple[Cause, ...], int, Case]:
    """One thing after the other made the baseline's, and the loss after each; ends with the baseline's own ids."""
    steps = (
        ("chat_template", "chat_template", Dressed(tokenizer, template=reference)),
        ("bos", "tokenizer.bos", Dressed(tokenizer, template=reference, begin=reference)),
        ("tokenizer", "tokenizer", reference),
    )
    before, ids = case.loss, _ids(cut_alike(case.question, case.sources, tokenizer))
    causes, cost = [], 0
    for kind, place, dressed in steps:
        own = cut_alike(case.question, case.sources, dressed)
        if _ids(own) == ids:
            continue
        ids = _ids(own)
        after = as_used(case.question, case.sources, case.candidate, case.settings.metric, dressed)
        cost += 1
        share = recovered(before, after, case.whole, case.settings.seed)
        if explains(share):
            sentence = f"{_SENTENCES[kind]}; asked as the baseline is, it recovers {percent(share.value)} of the loss."
            cause = Cause("baseline", kind, (place,), sentence, share, {"tokenizer": place})
            causes.append(cause)
        before = after
    return tuple(causes), cost, case.with_repair(before)


_SENTENCES = {
    "chat_template": "The candidate's chat template writes these prompts in another way than the baseline's",
    "bos": "The candidate's tokenizer does not begin a text as the baseline's does (BOS)",
    "tokenizer": "The candidate's tokenizer cuts these prompts into other tokens than the baseline's",
}


def _ids(own: EvaluationSet) -> list[tuple]:
    return [(sample.ids, sample.choices) for sample in own.samples]


def _first(case: Case, own: EvaluationSet, at: int) -> dict[str, Any]:
    ours, theirs = case.question.evaluation.samples[at], own.samples[at]
    place = next((n for n, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=False)) if a != b), 0)
    around = slice(max(0, place - 4), place + 8)
    return {
        "document": ours.document,
        "place": place,
        "baseline": list(ours.ids[around]),
        "candidate": list(theirs.ids[around]),
    }


def _same_words(details: Mapping[str, Any]) -> str:
    other = [name for name in ("chat_template", "begins_with", "tokenizer") if details.get(name)]
    if not other:
        return "Tokenizer and chat template are the baseline's, and so are all ids of the prompts."
    return f"All ids of the prompts are the baseline's, although {', '.join(other).replace('_', ' ')} differ."


def compare_tokenizers(ours: Tokenizer, theirs: Tokenizer) -> dict[str, Any]:
    """What differs: the parts of the tokenizer, what it puts before a text, special tokens, the chat template."""
    parts = [_parts(tokenizer) for tokenizer in (ours, theirs)]
    names = sorted(name for name in parts[0].keys() | parts[1].keys() if parts[0].get(name) != parts[1].get(name))
    begins = [prefix_of(tokenizer) for tokenizer in (ours, theirs)]
    templates = [t.get_chat_template() if t.chat_template else None for t in (ours, theirs)]
    return {
        "tokenizer": names,
        "begins_with": None if begins[0] == begins[1] else {"baseline": begins[0], "candidate": begins[1]},
        "chat_template": templates[0] != templates[1],
    }


def _parts(tokenizer: Any) -> dict[str, Any]:
    """The parts of a tokenizer by name, as text."""
    found = {"special_tokens": json.dumps(getattr(tokenizer, "special_tokens_map", {}), sort_keys=True, default=str)}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {**found, "vocabulary": json.dumps(tokenizer.get_vocab(), sort_keys=True)}
    stored = json.loads(backend.to_str())
    model = stored.get("model") or {}
    found |= {"vocabulary": json.dumps(model.get("vocab"), sort_keys=True), "merges": json.dumps(model.get("merges"))}
    for name in ("normalizer", "pre_tokenizer", "post_processor", "added_tokens"):
        found[name] = json.dumps(stored.get(name), sort_keys=True)
    return found


def generation_differences(baseline: Model, candidate: Model) -> list[dict[str, Any]]:
    """Fields of the generation settings that differ; none where one of the two has no such file."""
    configs = [model.generation_config() for model in (baseline, candidate)]
    if configs[0] is None or configs[1] is None:
        return []
    ours, theirs = (config.to_diff_dict() for config in configs if config is not None)
    return [
        {"field": f"generation_config.{name}", "baseline": ours.get(name), "candidate": theirs.get(name)}
        for name in sorted(ours.keys() | theirs.keys())
        if name not in _SETTINGS and ours.get(name) != theirs.get(name)
    ]


def _settings_words(settings: list[dict[str, Any]], metric: str) -> str:
    named = ", ".join(row["field"] for row in settings)
    if metric.startswith("check:"):
        return f"{named} differ: systems that follow them generate otherwise; here both are asked greedily."
    return f"{named} differ, which no loss of tokens depends on."
