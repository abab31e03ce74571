"""`kv`: what keys and values in few bits cost, by policy and context, apart from the weights and crossed with them."""

from collections.abc import Sequence
from typing import Any

import torch

from subeight.advise.kv import Loaded, Text, measure, reference
from subeight.advise.kv_findings import findings
from subeight.advise.serving import serving_flags
from subeight.errors import InputError
from subeight.evals.passes import context_length
from subeight.evals.scoring import require_same_vocabulary
from subeight.kv.memory import Shape, cache_bytes, crossing
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model
from subeight.records import Coordinates, fingerprint
from subeight.records.progress import progress
from subeight.text.long import long_windows
from subeight.text.needles import needles
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, finish

POLICIES = ("none", "int8:token,axis=token", "int4:g64", "int2:g32:asym")
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
    batch: int = 1,
    options: Options | None = None,
) -> Result:
    """Measures policies at contexts, with full weights and with each checkpoint of `weights`.

    At each context up to `windows` windows of the evaluation text (KL, perplexity by place, greedy agreement over
    `written` tokens) and `retrieval` prompts for each depth, with one hidden number and with four.

    Raises:
        InputError: a policy that cannot be, a context longer than the model's or than the text.
    """
    options = options or Options()
    session = Session("kv", options)
    parsed = list(dict.fromkeys([KVPolicy(), *(KVPolicy.parse(text) for text in policies)]))
    opened = session.model(model)
    lows = [session.model(name) for name in weights]
    for low in lows:
        require_same_vocabulary(opened, low)
    _require_contexts(opened, contexts)
    texts = [_text(session, opened, context, windows, retrieval, written) for context in contexts]
    text = fingerprint([[window.tolist() for window in one.windows] for one in texts])
    coordinates = Coordinates(baseline=opened.coordinate, evaluation=text, stack=session.stack.hash)
    identity = {
        "coordinates": coordinates.model_dump(),
        "policies": [str(policy) for policy in parsed],
        "weights": [low.coordinate for low in lows],
        "shape": [list(contexts), windows, retrieval, written, batch],
    }
    with session.run(opened, identity) as run:
        base = Loaded.of(FULL, opened, session.dtype, session.device)
        loaded = [base, *(Loaded.of(low.label, low, session.dtype, session.device) for low in lows)]
        cells = _cells(session, base, loaded, parsed, texts)
        sentences = findings(cells)
        numbers = {
            "cells": cells,
            "memory": _memory(opened, loaded, parsed, contexts, batch),
            "serving": {str(policy): [flags.numbers() for flags in serving_flags(policy)] for policy in parsed},
            "findings": sentences,
        }
        record = session.record(
            coordinates,
            numbers,
            subject={"model": opened.label, "weights": list(weights)},
            warnings=[f"{one.name}: {words}" for one in loaded for words in one.warnings],
        )
        return finish(run, record, (*map(_line, cells), *sentences))


def _require_contexts(model: Model, contexts: Sequence[int]) -> None:
    longest = context_length(model)
    over = [context for context in contexts if context > longest]
    if over:
        raise InputError(f"--contexts has {over[0]}, but {model.label} knows {longest} tokens; give shorter ones.")


def _text(session: Session, model: Model, context: int, windows: int, retrieval: int, written: int) -> Text:
    tokenizer, options = model.tokenizer(), session.options
    rows = [torch.tensor(w, device=session.device) for w in long_windows(options.evals, tokenizer, context, windows)]
    hidden = [
        needle for count in (1, 4) for needle in needles(tokenizer, [context], DEPTHS, count, retrieval, options.seed)
    ]
    return Text(context, rows, hidden, min(written, context // 2))


def _cells(
    session: Session, base: Loaded, loaded: Sequence[Loaded], policies: Sequence[KVPolicy], texts: Sequence[Text]
) -> list[dict[str, Any]]:
    """Every checkpoint under every policy at every context."""
    total = sum(text.context * (1 + len(loaded) * len(policies)) for text in texts)
    found = []
    with progress(total, "Reading with caches", "tokens", quiet=session.options.quiet) as advance:
        for text in texts:
            known = reference(base, text)
            advance(text.context)
            for one in loaded:
                for policy in policies:
                    found.append(measure(base, one, policy, text, known, session.options.seed))
                    advance(text.context)
    return found


def _memory(
    model: Model, loaded: Sequence[Loaded], policies: Sequence[KVPolicy], contexts: Sequence[int], batch: int
) -> dict[str, Any]:
    """Bytes of weights, of caches by policy and context, and where these outweigh those."""
    shape = Shape.of(model.config)
    held = {one.name: one.nbytes for one in loaded}
    rows = [
        {
            "policy": str(policy),
            "bits": policy.bits(shape.head_dim),
            "bytes": {context: cache_bytes(shape, policy, context, batch) for context in contexts},
            "outweighs_from": {name: crossing(shape, policy, size, batch) for name, size in held.items()},
        }
        for policy in policies
    ]
    return {"batch": batch, "weights": held, "rows": rows}


def _line(cell: dict[str, Any]) -> str:
    retrieval = cell["retrieval"]
    found = "" if retrieval is None else f", {retrieval['share']:.0%} of the hidden numbers found"
    return (
        f"{cell['weights']} weights, {cell['policy']}, {cell['context']} tokens: KL {cell['kl']:.4f}, perplexity "
        f"{cell['ppl']:.2f}, {cell['cache_bytes'] / 1e6:.1f} MB of cache{found}."
    )
