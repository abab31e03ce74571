"""What a server is asked about the failing prompts, and what our own models say to the same questions.

A question goes out as token ids, as text or as messages. For each there are readings: the token ids that the server
may have made of it (with a BOS, without, with two), of which one is right. All are scored with the twin in one pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from subeight.diagnose.server import TOP, Heard, RefusedError, Server, Way
from subeight.evals.loss import Loss
from subeight.evals.passes import Computing, places_of, run_pass
from subeight.models.model import Model
from subeight.text import Sample, batches
from subeight.text.chat import Message, render
from subeight.text.documents import read_documents
from subeight.text.tokens import Tokenizer, encode, prefix_of

RIGHT = "right"
Ids = tuple[int, ...]
Values = tuple[float, ...]
_LONGEST = 128  # tokens of one prompt
_PLACES = 3  # beginnings of one prompt, where only the next token is scored
_CHATS = 4


@dataclass(frozen=True)
class Question:
    """One thing that was asked: how, what the server may have read (by name; `right` is right), what it said."""

    form: Literal["ids", "text", "messages", "rendered"]
    prompt: int
    readings: Mapping[str, Ids]
    heard: Heard
    echo: bool = False

    @property
    def values(self) -> Values:
        """The log-probabilities that it gave: of the prompt's tokens from the second on, or the largest of the next."""
        if not self.echo:
            return self.heard.top
        return tuple(float("nan") if value is None else value for value in self.heard.tokens[1:])


def ask_prompts(server: Server, way: Way, samples: Sequence[Sample]) -> list[Question]:
    """Asks about token ids: every token of each prompt with echo, otherwise what follows some of its beginnings."""
    asked = []
    for number, sample in enumerate(samples):
        ids = sample.ids[:_LONGEST]
        for begun in [ids] if way.echo else _beginnings(ids):
            heard = server.completion(begun, echo=way.echo)
            asked.append(Question("ids", number, {RIGHT: begun}, heard, way.echo))
    return asked


def ask_texts(server: Server, samples: Sequence[Sample], tokenizer: Tokenizer) -> list[Question]:
    """Asks what follows the same prompts as text; those that the tokenizer does not cut back alike are left out."""
    prefix = tuple(prefix_of(tokenizer))
    asked = []
    for number, sample in enumerate(samples):
        body = sample.ids[:_LONGEST]
        body = body[len(prefix) :] if body[: len(prefix)] == prefix else body
        for begun in _beginnings(body):
            text = tokenizer.decode(list(begun), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if tuple(encode(text, tokenizer)) == begun:
                heard = server.completion(text, echo=False)
                asked.append(Question("text", number, _readings(prefix + begun, tokenizer), heard))
    return asked


def ask_messages(server: Server, sources: Iterable[str], tokenizer: Tokenizer) -> list[Question]:
    """Asks for the first token of the answer to the prompts as messages; a text becomes a message of the user."""
    asked = []
    for number, messages in enumerate(_conversations(sources)):
        right = tuple(render(messages, tokenizer, add_generation_prompt=True))
        asked.append(Question("messages", number, _readings(right, tokenizer), server.chat(messages)))
    return asked


def ask_renderings(server: Server, way: Way, messages: Sequence[Question], tokenizer: Tokenizer) -> list[Question]:
    """Asks for the same first tokens again, with the messages rendered here: only the template is another."""
    asked = []
    for question in messages:
        ids = question.readings[RIGHT]
        prefix = prefix_of(tokenizer)
        body = list(ids[len(prefix) :] if list(ids[: len(prefix)]) == prefix else ids)
        prompt = ids if way.ids else tokenizer.decode(body, skip_special_tokens=False)
        asked.append(Question("rendered", question.prompt, {RIGHT: ids}, server.completion(prompt, echo=False)))
    return asked


def way_of(server: Server, ways: Iterable[Way], sample: Sample, tokenizer: Tokenizer) -> Way:
    """The first way of asking that the server answers; raises RefusedError with the last reason where none is."""
    reason = RefusedError("no way of asking is known")
    ids = sample.ids[:8]
    for way in ways:
        try:
            server.completion(ids if way.ids else tokenizer.decode(list(ids)), echo=way.echo)
            return way
        except RefusedError as error:
            reason = error
    raise reason


def _beginnings(ids: Ids) -> list[Ids]:
    """A short, a middle and the whole beginning: BOS matters most where the text is short."""
    ends = sorted({min(8, len(ids)), (len(ids) + 1) // 2, len(ids)})[:_PLACES]
    return [ids[:end] for end in ends if end > 0]


def _readings(ids: Ids, tokenizer: Any) -> dict[str, Ids]:
    """The right ids, and the same with another number of BOS in front."""
    bos = tokenizer.bos_token_id
    readings = {RIGHT: ids}
    if bos is not None:
        readings["with one BOS more"] = (bos, *ids)
        if ids[:1] == (bos,) and len(ids) > 1:
            readings["with one BOS fewer"] = ids[1:]
    return readings


def _conversations(sources: Iterable[str]) -> list[tuple[Message, ...]]:
    found: list[tuple[Message, ...]] = []
    for source in sources:
        for document in read_documents(source, part="evaluation"):
            messages = document.messages or ({"role": "user", "content": " ".join((document.text or "").split()[:60])},)
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            if messages:
                found.append(tuple(messages))
            if len(found) == _CHATS:
                return found
    return found


def answers(model: Model, questions: Sequence[Question], computing: Computing) -> list[dict[str, Values]]:
    """What a model says to each reading of each question, in one streamed pass."""
    keys, samples = [], []
    for number, question in enumerate(questions):
        for name, ids in question.readings.items():
            keys.append((number, name))
            row = ids if question.echo else (*ids, 0)
            scored = [question.echo and place > 0 for place in range(len(row))]
            scored[-1] = True
            samples.append(Sample(row, tuple(scored), "served", str(number)))
    listed = batches(samples, 4096)
    made = run_pass(model, listed, computing, f"Running {model.label} on what the server was asked")
    found: list[dict[str, Values]] = [{} for _ in questions]
    for hidden, batch in zip(made.hidden, listed, strict=True):
        rows, columns = places_of(batch)
        for place, index in enumerate(batch.index):
            mine = torch.eq(rows, place)
            said = made.head(hidden[mine.to(hidden.device)]).log_softmax(-1)
            number, name = keys[index]
            if questions[number].echo:
                targets = batch.ids[rows[mine], columns[mine]].to(said.device)
                found[number][name] = tuple(said.gather(1, targets[:, None])[:, 0].tolist())
            else:
                found[number][name] = tuple(said[0].topk(min(TOP, said.shape[-1])).values.tolist())
    return found


def distance(questions: Sequence[Question], one: Sequence[Values], other: Sequence[Values]) -> Loss:
    """How far two answers are from each other: absolute differences of log-probabilities, summed by prompt."""
    prompts = sorted({question.prompt for question in questions})
    total, count = np.zeros(len(prompts)), np.zeros(len(prompts))
    for question, a, b in zip(questions, one, other, strict=True):
        width = min(len(a), len(b))
        if not width:
            continue
        ends = (a[-width:], b[-width:]) if question.echo else (a[:width], b[:width])  # some leave a first token out
        apart = np.abs(np.array(ends[0]) - np.array(ends[1]))
        place = prompts.index(question.prompt)
        total[place] += np.nansum(apart)
        count[place] += np.count_nonzero(~np.isnan(apart))
    kept = count > 0
    return Loss(total[kept], count[kept], np.full(int(kept.sum()), "served"))
