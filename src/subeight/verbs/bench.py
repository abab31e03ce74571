"""`bench`: how fast a checkpoint reads and writes on its kernels, beside the same weights in bf16."""

from collections.abc import Sequence
from typing import Any

import torch

from subeight.advise.speed import Timed, time_together
from subeight.errors import InputError
from subeight.evals.passes import context_length
from subeight.models.packed import load_packed
from subeight.models.whole import Whole
from subeight.records import Coordinates
from subeight.verbs.generate import held
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, finish

PACKED, PLAIN = "packed", "dequantized"


def bench(
    model: str,
    *,
    batch: Sequence[int] = (1,),
    prompt: int = 256,
    tokens: int = 32,
    rounds: int = 5,
    options: Options | None = None,
) -> Result:
    """Times prefill and decode of the packed checkpoint and of its dequantized weights, in turn, in one process.

    Medians over `rounds`; each round prefills `prompt` random tokens per sequence and decodes `tokens` more.

    Raises:
        InputError: prompt and tokens do not fit into the model's context.
    """
    options = options or Options()
    session = Session("bench", options)
    opened = session.model(model)
    longest = context_length(opened)
    if prompt + tokens > longest:
        raise InputError(
            f"--prompt {prompt} and --tokens {tokens} exceed the {longest} tokens that {opened.label} knows."
        )
    coordinates = Coordinates(baseline=opened.coordinate, stack=session.stack.hash)
    identity = {"coordinates": coordinates.model_dump(), "batch": list(batch), "shape": [prompt, tokens, rounds]}
    with session.run(opened, identity) as run:
        packed = load_packed(opened, session.dtype, session.device)
        modules = {PACKED: packed.module, PLAIN: Whole(opened, session.dtype, session.device).module}
        draw = torch.Generator().manual_seed(options.seed)
        rows = []
        for size in batch:
            ids = torch.randint(0, opened.config.get_text_config().vocab_size, (size, prompt), generator=draw)
            timed = time_together(modules, ids.to(session.device), tokens, rounds)
            rows.append({name: found.numbers() for name, found in timed.items()} | {"ratio": _ratio(timed)})
        plain = sum(value.nbytes for value in modules[PLAIN].parameters())
        numbers = {"rows": rows, "dequantized_bytes": plain, **held(packed)}
        record = session.record(coordinates, numbers, subject={"model": opened.label}, warnings=packed.warnings)
        return finish(run, record, tuple(_sentence(row) for row in rows))


def _ratio(timed: dict[str, Timed]) -> dict[str, float]:
    """How many times faster the packed one is."""
    packed, plain = timed[PACKED].numbers(), timed[PLAIN].numbers()
    return {step: float(plain[f"{step}_seconds"]) / float(packed[f"{step}_seconds"]) for step in ("prefill", "decode")}  # type: ignore[arg-type]


def _sentence(row: dict[str, Any]) -> str:
    packed, ratio = row[PACKED], row["ratio"]
    return (
        f"batch {packed['batch']}: {packed['prefill_tokens_per_second']:.0f} tokens a second read "
        f"({ratio['prefill']:.2f} x dequantized), {packed['decode_tokens_per_second']:.1f} written "
        f"({ratio['decode']:.2f} x)."
    )
