"""`kv`: what keys and values in few bits cost, by policy and context, apart from the weights and crossed with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subeight.advise.kv import Loaded, Reference, Text, measure, reference
from subeight.advise.kv_findings import findings
from subeight.advise.kv_map import sensitivity
from subeight.advise.serving import serving_flags
from subeight.errors import InputError
from subeight.evals.passes import context_length
from subeight.evals.scoring import require_same_vocabulary
from subeight.formats import Format
from subeight.kv.memory import Shape, cache_bytes, crossing, mean_bits
from subeight.kv.policy import KVPolicy, parse_format
from subeight.map.budget import Budget, parse_budget
from subeight.models.model import Model
from subeight.records import Coordinates, fingerprint
from subeight.records.progress import progress
from subeight.text.long import long_windows
from subeight.text.needles import needles
from subeight.verbs.kv_budget import allocated, joint, joint_sentence, least_bytes, require_enough
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, finish

POLICIES = ("none", "int8:token,axis=token", "int4:g64:asym,rotate", "int2:g64:asym,rotate")
MAPPED = ("int8:g64:asym", "int4:g64:asym", "int2:g64:asym")  # what a budget is spent on, unless said otherwise
FULL = "full"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def kv(
    model: str,
    *,
    policies: Sequence[str] = POLICIES,
    contexts: Sequence[int] = (1024, 4096),
    weights: Sequence[str] = (),
    windows: int = 2,
    retrieval: int = 2,
    written: int = 32,
    formats: Sequence[str] = (),
    budget: str | None = None,
    length: int | None = None,
    batch: int = 1,
    options: Options | None = None,
) -> Result:
    """Measures policies at contexts, with full weights and with each checkpoint of `weights`.

    At each context up to `windows` windows of the evaluation text (KL, perplexity by place, greedy agreement over
    `written` tokens) and `retrieval` prompts for each depth, with one hidden number and with four.

    `formats` maps the loss of each layer's keys and values in each of them, at the shortest context; scales, window and
    basis are as in the first policy that rounds. `budget` spends by that map: "3 bits" of a number, "kl 0.01", or
    "24 GB" of weights and cache together, for `batch` sequences of `length` tokens (else of the longest context).

    Raises:
        InputError: a policy that cannot be, a context longer than the model's or than the text, a budget too small.
    """
    options = options or Options()
    session = Session("kv", options)
    parsed = list(dict.fromkeys([KVPolicy(), *(KVPolicy.parse(text) for text in policies)]))
    spend = None if budget is None else parse_budget(budget)
    mapped = [parse_format(text) for text in (formats or (MAPPED if spend else ()))]
    opened = session.model(model)
    lows = [session.model(name) for name in weights]
    length = length or max(contexts)
    _require_possible(opened, lows, parsed, contexts, length)
    if spend is not None and spend.kind == "bits":
        require_enough(_template(parsed), mapped, Shape.of(opened.config), spend, 0, length, batch)
    texts = [_text(session, opened, context, windows, retrieval, written) for context in contexts]
    text = fingerprint([[window.tolist() for window in one.windows] for one in texts])
    coordinates = Coordinates(baseline=opened.coordinate, evaluation=text, stack=session.stack.hash)
    identity = {
        "coordinates": coordinates.model_dump(),
        "policies": [str(policy) for policy in parsed],
        "weights": [low.coordinate for low in lows],
        "shape": [list(contexts), windows, retrieval, written, batch, length],
        "map": [[str(format) for format in mapped], budget],
    }
    with session.run(opened, identity) as run:
        base = Loaded.of(FULL, opened, session.dtype, session.device)
        loaded = [base, *(Loaded.of(low.label, low, session.dtype, session.device) for low in lows)]
        question = _Question(session, base, loaded, {str(policy): policy for policy in parsed}, texts)
        numbers, sentences = _answer(question, mapped, spend, length, batch)
        record = session.record(
            coordinates,
            numbers,
            subject={"model": opened.label, "weights": list(weights)},
            warnings=[f"{one.name}: {words}" for one in loaded for words in one.warnings],
        )
        return finish(run, record, (*map(_line, numbers["cells"]), *sentences))


def _require_possible(
    opened: Model, lows: Sequence[Model], policies: Sequence[KVPolicy], contexts: Sequence[int], length: int
) -> None:
    for low in lows:
        require_same_vocabulary(opened, low)
    for policy in policies:
        policy.require_layers(len(Shape.of(opened.config).sliding))
    _require_contexts(opened, "--contexts", contexts)
    _require_contexts(opened, "--length", [length])


@dataclass(frozen=True)
class _Question:
    """What is measured: checkpoints under policies, by the names that cells give them, on texts."""

    session: Session
    base: Loaded
    loaded: Sequence[Loaded]
    policies: dict[str, KVPolicy]
    texts: Sequence[Text]

    @property
    def shape(self) -> Shape:
        return Shape.of(self.base.module.config)

    @property
    def held(self) -> dict[str, int]:
        """Bytes of each checkpoint's weights."""
        return {one.name: one.nbytes for one in self.loaded}


def _answer(
    question: _Question, mapped: Sequence[Format], spend: Budget | None, length: int, batch: int
) -> tuple[dict[str, Any], list[str]]:
    """The record's numbers, and what they say."""
    policies, shape = question.policies, question.shape
    if spend is not None and spend.kind == "bytes":
        require_enough(_template(policies.values()), mapped, shape, spend, min(question.held.values()), length, batch)
    known = [reference(question.base, text) for text in question.texts]
    numbers: dict[str, Any] = {}
    sentences: list[str] = []
    if mapped:
        numbers["map"] = _map(question, mapped, known)
    if spend is not None:
        made = _spent(question, numbers["map"]["rows"], mapped, spend, length, batch)
        policies |= {name: policy for name, (policy, _) in made.items()}
        numbers["allocation"] = [{"name": name, **told} for name, (_, told) in made.items()]
    numbers["cells"] = cells = _cells(question, known)
    sentences += findings(cells)
    if spend is not None and spend.kind == "bytes":
        numbers["joint"] = joint(cells, policies, question.held, shape, spend.value, length, batch)
        sentences.append(joint_sentence(numbers["joint"]))
    contexts = [text.context for text in question.texts]
    numbers["memory"] = _memory(question, contexts, batch)
    numbers["serving"] = {name: [flags.numbers() for flags in serving_flags(one)] for name, one in policies.items()}
    return numbers | {"findings": sentences}, sentences


def _template(policies: Iterable[KVPolicy]) -> KVPolicy:
    """The first that rounds: what an allocation leaves as it is."""
    return next((policy for policy in policies if not policy.is_full), KVPolicy())


def _map(question: _Question, formats: Sequence[Format], known: Sequence[Reference]) -> dict[str, Any]:
    """The sensitivity of every layer's keys and values, at the shortest context."""
    at = min(range(len(question.texts)), key=lambda number: question.texts[number].context)
    text, policy, session = question.texts[at], _template(question.policies.values()), question.session
    total = 2 * len(question.shape.sliding) * len(formats) * text.context
    with progress(total, "Mapping keys and values", "tokens", quiet=session.options.quiet) as advance:
        rows = sensitivity(question.base, policy, formats, text, known[at], advance, session.options.seed)
    return {"context": text.context, "rows": rows}


def _spent(
    question: _Question,
    rows: Sequence[dict[str, Any]],
    formats: Sequence[Format],
    spend: Budget,
    length: int,
    batch: int,
) -> dict[str, tuple[KVPolicy, dict[str, Any]]]:
    """The allocation of the budget by its name; of bytes one for each checkpoint that leaves room for it."""
    policy, shape = _template(question.policies.values()), question.shape
    if spend.kind != "bytes":
        return {f"allocated {spend.text}": allocated(policy, rows, shape, spend, length, batch)}
    found = {}
    least = least_bytes(policy, formats, shape, length, batch)
    for name, size in question.held.items():
        left = Budget(spend.text, "bytes", spend.value - size)
        if least <= left.value:
            found[f"allocated beside {name}"] = allocated(policy, rows, shape, left, length, batch)
    return found


def _require_contexts(model: Model, option: str, contexts: Sequence[int]) -> None:
    longest = context_length(model)
    over = [context for context in contexts if context > longest]
    if over:
        raise InputError(f"{option} has {over[0]}, but {model.label} knows {longest} tokens; give shorter ones.")


def _text(session: Session, model: Model, context: int, windows: int, retrieval: int, written: int) -> Text:
    tokenizer, options = model.tokenizer(), session.options
    rows = [torch.tensor(w, device=session.device) for w in long_windows(options.evals, tokenizer, context, windows)]
    hidden = [
        needle for count in (1, 4) for needle in needles(tokenizer, [context], DEPTHS, count, retrieval, options.seed)
    ]
    return Text(context, rows, hidden, min(written, context // 2))


def _cells(question: _Question, known: Sequence[Reference]) -> list[dict[str, Any]]:
    """Every checkpoint under every policy at every context."""
    options = question.session.options
    each = len(question.loaded) * len(question.policies)
    found = []
    with progress(
        each * sum(text.context for text in question.texts), "Reading with caches", "tokens", quiet=options.quiet
    ) as advance:
        for text, reference_ in zip(question.texts, known, strict=True):
            for one in question.loaded:
                for name, policy in question.policies.items():
                    cell = measure(question.base, one, policy, text, reference_, options.seed)
                    found.append(cell | {"policy": name})
                    advance(text.context)
    return found


def _memory(question: _Question, contexts: Sequence[int], batch: int) -> dict[str, Any]:
    """Bytes of weights, of caches by policy and context, and where these outweigh those."""
    shape, held = question.shape, question.held
    rows = [
        {
            "policy": name,
            "bits": mean_bits(shape, policy),
            "bytes": {context: cache_bytes(shape, policy, context, batch) for context in contexts},
            "outweighs_from": {weights: crossing(shape, policy, size, batch) for weights, size in held.items()},
        }
        for name, policy in question.policies.items()
    ]
    return {"batch": batch, "weights": held, "rows": rows}


def _line(cell: dict[str, Any]) -> str:
    retrieval = cell["retrieval"]
    found = "" if retrieval is None else f", {retrieval['share']:.0%} of the hidden numbers found"
    return (
        f"{cell['weights']} weights, {cell['policy']}, {cell['context']} tokens: KL {cell['kl']:.4f}, perplexity "
        f"{cell['ppl']:.2f}, {cell['cache_bytes'] / 1e6:.1f} MB of cache{found}."
    )
