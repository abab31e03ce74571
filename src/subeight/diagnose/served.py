"""The system that really fails: a served model's log-probabilities against those of the twin.

The same token ids first (a serving kernel), then the same prompts as text (BOS), then as messages (chat template): one
thing more is the server's own each time, so what differs first is what is guilty.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from subeight.diagnose.asked import (
    RIGHT,
    Question,
    Values,
    answers,
    ask_messages,
    ask_prompts,
    ask_renderings,
    ask_texts,
    distance,
    way_of,
)
from subeight.diagnose.case import Case
from subeight.diagnose.finding import Cause, Finding
from subeight.diagnose.server import WAYS, RefusedError, Server
from subeight.diagnose.share import Share
from subeight.evals.loss import Loss, recovered
from subeight.models.model import Model

PROMPTS = 8
TOKENS = 1024
NOISE = 0.15  # nats per log-probability: kernels in 16 bits, or with activations rounded to 8
SOME = 0.03  # nats below which two readings of a prompt are the same
NAMED = 0.1
FORMS = ("ids", "text", "messages", "rendered")


@dataclass(frozen=True)
class _Heard:
    """All questions of one form, and what the twin says to each reading."""

    questions: list[Question]
    twin: list[dict[str, Values]]

    @property
    def said(self) -> list[Values]:
        return [question.values for question in self.questions]

    def names(self) -> list[str]:
        """The readings that all questions have, the right one first."""
        return [name for name in self.questions[0].readings if all(name in q.readings for q in self.questions)]

    def distance(self, name: str = RIGHT) -> Loss:
        """How far the server is from the twin, if it read the prompts so."""
        return distance(self.questions, self.said, [said[name] for said in self.twin])

    def counted(self, name: str = RIGHT) -> bool | None:
        """Whether the server counted as many tokens as this reading has; None where it does not say."""
        pairs = [(len(q.readings[name]), q.heard.prompt_tokens) for q in self.questions]
        return None if any(found is None for _, found in pairs) else all(own == found for own, found in pairs)

    def best(self) -> str:
        """The reading that is nearest to what the server said, and has its number of tokens where it tells that."""
        fitting = [name for name in self.names() if self.counted(name) is not False] or self.names()
        return min(fitting, key=lambda name: _mean(self.distance(name)))


def examine(case: Case, twin: Model) -> Finding:
    """Asks the server at `settings.served` about the worst prompts, as ids, as text and as messages.

    Raises:
        InputError: no server answers at that URL.
    """
    assert case.settings.served is not None
    server, tokenizer = Server(case.settings.served), case.baseline.tokenizer()
    share = Share.worst(case, TOKENS)
    samples = share.samples[:PROMPTS]
    refused: list[str] = []
    asked: list[Question] = []
    way = None
    try:
        way = way_of(server, WAYS, samples[0], tokenizer)
        asked += ask_prompts(server, way, samples) if way.ids else []
        asked += ask_texts(server, samples, tokenizer)
    except RefusedError as error:
        refused.append(f"its log-probabilities of prompts could not be had: {error}")
    try:
        talks = ask_messages(server, case.sources, tokenizer)
        asked += talks
        asked += ask_renderings(server, way, talks, tokenizer) if way is not None else []
    except RefusedError as error:
        refused.append(f"its chat could not be asked: {error}")
    if not asked:
        return Finding("kernels", "unknown", f"The server at {server.url} was not tested: {'; '.join(refused)}.")
    computing = replace(case.computing, dtype=torch.float32)
    twin_said = answers(twin, asked, computing)
    heard = {form: _of(form, asked, twin_said) for form in FORMS}
    found = _judged(case, {form: part for form, part in heard.items() if part is not None})
    return _finding(server, found, heard, refused)


def _of(form: str, asked: Sequence[Question], said: Sequence[dict[str, Values]]) -> _Heard | None:
    chosen = [(question, values) for question, values in zip(asked, said, strict=True) if question.form == form]
    return _Heard([q for q, _ in chosen], [v for _, v in chosen]) if chosen else None


def _judged(case: Case, heard: dict[str, _Heard]) -> Cause | str:
    """The first thing that differs, or the sentence that clears the server."""
    direct, text, messages, rendered = (heard.get(form) for form in FORMS)
    if direct is not None and _mean(direct.distance()) > NOISE:
        return _kernel(case, direct, RIGHT)
    if text is not None:
        best = text.best()
        if direct is None and _mean(text.distance(best)) > NOISE:
            return _kernel(case, text, best) if text.counted(best) is not False else _other_text(text)
        if best != RIGHT and _apart(text, best):
            return _bos(text, best, "a text")
    if messages is not None:
        best = messages.best()
        if best != RIGHT and _apart(messages, best) and _mean(messages.distance(best)) <= NOISE:
            return _bos(messages, best, "a conversation")
        if _is_other_prompt(messages, rendered):
            return _template(messages, rendered)
    tried = " and ".join({"ids": "token ids"}.get(form, form) for form in heard if form != "rendered")
    return f"The server says to {tried} what the dequantized twin says"


def _apart(heard: _Heard, best: str) -> bool:
    """Whether another reading than the right one explains what the server said; its count of tokens is half a proof."""
    right = _mean(heard.distance())
    nearer = 2 / 3 if heard.counted() is False and heard.counted(best) else 1 / 3
    return right > SOME and _mean(heard.distance(best)) < right * nearer


def _is_other_prompt(heard: _Heard, rendered: _Heard | None) -> bool:
    """Whether the messages became another prompt: what the server says to our rendering tells its noise."""
    off = _mean(heard.distance())
    noise = 0.0 if rendered is None else _mean(rendered.distance())
    return off > max(NOISE, 3 * noise) or (heard.counted() is False and not off <= SOME)


def _kernel(case: Case, heard: _Heard, reading: str) -> Cause | str:
    computing = replace(case.computing, dtype=torch.float32)
    base = [said[reading] for said in answers(case.baseline, heard.questions, computing)]
    twin = [said[reading] for said in heard.twin]
    far = distance(heard.questions, heard.said, base)
    gained = recovered(far, distance(heard.questions, twin, base))
    off = _mean(heard.distance(reading))
    if gained.value < NAMED or (gained.ci is not None and gained.low <= 0):
        return (
            f"The server's log-probabilities differ from the twin's by {off:.3g} nats, but are no farther from the "
            "baseline's"
        )
    what = "the same token ids" if heard.questions[0].form == "ids" else "the same text"
    sentence = (
        f"The server gives {what} other log-probabilities than the dequantized twin (by {off:.3g} nats on average): "
        "what it computes with is wrong, its kernel or its copy of the weights."
    )
    return Cause("kernels", "serving", ("server",), sentence, gained, {"server": "kernel"})


def _other_text(heard: _Heard) -> Cause:
    apart = [(len(q.readings[RIGHT]), q.heard.prompt_tokens) for q in heard.questions]
    own, counted = next((own, counted) for own, counted in apart if own != counted)
    sentence = f"The server cuts a text into {counted} tokens that the baseline's tokenizer cuts into {own}."
    return Cause("kernels", "served_tokenizer", ("tokenizer",), sentence, None, {"server": "tokenizer"})


def _bos(heard: _Heard, best: str, what: str) -> Cause:
    gained = recovered(heard.distance(), heard.distance(best))
    sentence = (
        f"The server reads {what} {best} than the baseline's tokenizer: so read, its log-probabilities are "
        f"{_mean(heard.distance(best)):.2g} nats from the twin's, else {_mean(heard.distance()):.2g}."
    )
    return Cause("kernels", "served_bos", ("tokenizer.bos",), sentence, gained, {"server": "bos"})


def _template(heard: _Heard, rendered: _Heard | None) -> Cause:
    made = "the number of tokens is the same"
    for question in heard.questions:
        own, counted = len(question.readings[RIGHT]), question.heard.prompt_tokens
        if counted is not None and counted != own:
            made = f"it makes {counted} tokens of a conversation, and our rendering has {own}"
            break
    off = _mean(heard.distance())
    said = f"; the first words of its answers are {off:.2g} nats from the twin's" if off == off else ""
    sentence = f"The server renders conversations by another chat template: {made}{said}."
    gained = None
    if rendered is not None and len(rendered.distance().total) == len(heard.distance().total) > 0:
        gained = recovered(heard.distance(), rendered.distance())
    return Cause("kernels", "served_template", ("chat_template",), sentence, gained, {"server": "chat_template"})


def _mean(loss: Loss) -> float:
    """NaN where nothing was said."""
    return loss.value if len(loss.total) else float("nan")


def _finding(server: Server, found: Cause | str, heard: dict[str, _Heard | None], refused: list[str]) -> Finding:
    details: dict[str, Any] = {"url": server.url, "refused": refused}
    for form, part in heard.items():
        if part is not None:
            details[form] = {
                "questions": len(part.questions),
                "echo": part.questions[0].echo,
                "tokens_agree": part.counted(),
                "distance": {name: _mean(part.distance(name)) for name in part.names()},
            }
    left = f" Not tested there: {'; '.join(refused)}." if refused else ""
    if isinstance(found, str):
        nearest = [_mean(part.distance()) for part in heard.values() if part is not None]
        off = max((value for value in nearest if value == value), default=0.0)
        verdict = "unknown" if refused and heard["ids"] is None and heard["text"] is None else "cleared"
        words = f"{found} (log-probabilities differ by {off:.2g} nats at most on average).{left}"
        return Finding("kernels", verdict, words, evaluations=1, details=details)  # type: ignore[arg-type]
    return Finding("kernels", "guilty", f"{found.sentence}{left}", (found,), evaluations=2, details=details)
