"""What the evaluation reaches in the model and the calibration does not: the warning before quantizing.

Both texts go through the model once, block by block, and every input of its linears is compared: how far it reaches,
in which channels, and how many tokens each expert gets. Scripts and tokens are compared beside it.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.structure import InputGroup
from subeight.probe import reach as limits
from subeight.probe.reach import Beyond, Reach
from subeight.probe.watching import run_watched
from subeight.records.progress import progress
from subeight.text import Sample, batches, compare_coverage
from subeight.text.tokens import Tokenizer

_NAMED = 3


def coverage(
    model: Model,
    calibration_ids: Tensor,
    evaluation_samples: Sequence[Sample],
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    batch: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """The `coverage` of an inspect record: calibration ids [sequences, length] against evaluation samples.

    Of a multiple-choice sample the right choice is read too. Nothing is warned of where both texts are of one kind
    and calibration is no shorter than evaluation.
    """
    samples = [_with_choice(sample) for sample in evaluation_samples]
    shell = Shell(model, dtype, device)
    half = max(1, (len(calibration_ids) + 1) // 2)
    seen: list[Part] = [(shell.embed(part).cpu(), None) for part in torch.split(calibration_ids, min(batch, half))]
    packs = batches(samples, batch * calibration_ids.shape[1])
    reached: list[Part] = [
        (shell.embed(pack.ids).cpu(), torch.arange(pack.ids.shape[1])[None] < pack.lengths[:, None]) for pack in packs
    ]
    found: list[Beyond] = []
    usual: list[Beyond] = []
    with progress(len(model.skeleton.blocks), "Comparing what both texts reach", "blocks", quiet=quiet) as advance:
        for index in range(len(model.skeleton.blocks)):
            block = Block(model, index, dtype, device)
            beyond, halves = _compare(block, shell, seen, reached)
            found += beyond
            usual += halves
            advance()
    text = compare_coverage(calibration_ids.tolist(), [sample.ids for sample in samples], tokenizer)
    numbers: dict[str, Any] = {
        "text": text.as_dict(),
        "ranges": _largest_first([row for item in found if (row := item.range())]),
        "channels": [row for item in found if (row := item.channels())],
        "usual_channels": sum(row["count"] for item in usual if (row := item.channels())),
        "experts": _once([row for item in found if (row := item.starved())]),
        "groups": len(found),
        "tokens": {"calibration": calibration_ids.numel(), "evaluation": sum(len(sample.ids) for sample in samples)},
    }
    return {"warnings": [*text.warnings, *_warnings(numbers)], **numbers}


def _with_choice(sample: Sample) -> Sample:
    if not sample.choices:
        return sample
    more = sample.choices[sample.answer or 0]
    return replace(sample, ids=(*sample.ids, *more), scored=(*sample.scored, *(True for _ in more)))


Part = tuple[Tensor, Tensor | None]  # hidden state [batch, length, width], and which cells are no padding


def _compare(block: Block, shell: Shell, seen: list[Part], reached: list[Part]) -> tuple[list[Beyond], list[Beyond]]:
    """What the evaluation does beyond calibration, and the second half of calibration beyond its first.

    Runs the block over both texts and replaces every hidden state by its output.
    """
    reaches = {group.name: Reach(group, block.device) for group in block.structure.groups}
    half = (len(seen) + 1) // 2
    seen[:half] = _pass(block, shell, seen[:half], reaches)
    halves = {name: Beyond(copy(reach)) for name, reach in reaches.items()}
    seen[half:] = _pass(block, shell, seen[half:], reaches, halves)
    beyond = {name: Beyond(reach) for name, reach in reaches.items()}
    reached[:] = _pass(block, shell, reached, beyond)
    return list(beyond.values()), list(halves.values())


def _pass(block: Block, shell: Shell, parts: list[Part], *gather: Mapping[str, Reach | Beyond]) -> list[Part]:
    """The block's outputs for some batches; everything that gathers sees the inputs, without padding."""
    outputs: list[Part] = []
    for hidden, real in parts:
        mask = None if real is None or bool(real.all()) else real.flatten().to(block.device)

        def shown(group: InputGroup, rows: Tensor, cells: Tensor | None, mask: Tensor | None = mask) -> None:
            if mask is not None:
                if cells is None:
                    raise ModelError(
                        f"which tokens {group.name} reads could not be seen, so padding cannot be left out: "
                        "compare with evaluation text of one length."
                    )
                rows = rows[mask[cells]]
            for by_group in gather:
                by_group[group.name].add(rows)

        output = run_watched(block, hidden, shell.call(tuple(hidden.shape[:2]), block.index), shown)
        outputs.append((output.cpu(), real))
    return outputs


def _largest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -(row["factor"] or float("inf")))


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an expert, though it has an input before and one after its activation; the worst first."""
    unique = {row["expert"]: row for row in reversed(rows)}
    return sorted(unique.values(), key=lambda row: (row["calibration"], -row["evaluation"]))


def _warnings(numbers: dict[str, Any]) -> list[str]:
    return [*_of_ranges(numbers), *_of_channels(numbers), *_of_experts(numbers)]


def _of_ranges(numbers: dict[str, Any]) -> list[str]:
    rows = numbers["ranges"]
    if not rows:
        return []
    named = "; ".join(
        f"{row['group']} (channel {row['channel']}: {row['evaluation']:,.3g} against {row['calibration']:,.3g}, "
        f"{_counted(row['tokens'], 'token')})"
        for row in rows[:_NAMED]
    )
    return [
        f"Ranges: in {len(rows)} of {numbers['groups']} inputs the evaluation exceeds calibration's largest value by "
        f"more than {limits.RANGE} x, and static input scales would clip it: {named}{_more(rows)}."
    ]


def _of_channels(numbers: dict[str, Any]) -> list[str]:
    rows = sorted(numbers["channels"], key=lambda row: -row["channels"][0]["tokens"])
    total = sum(row["count"] for row in rows)
    if total <= limits.UNLIKE * numbers["usual_channels"]:
        return []
    named = "; ".join(
        f"channel {top['channel']} of {row['group']} ({top['evaluation']:,.3g} against {top['calibration']:,.3g}, on "
        f"{_counted(top['tokens'], 'token')})"
        for row in rows[:_NAMED]
        for top in row["channels"][:1]
    )
    return [
        f"Channels: {_counted(total, 'channel')} in {_counted(len(rows), 'input')} went beyond {limits.CHANNEL:g} x "
        f"what calibration saw of them, each on at least {limits.OFTEN:.1%} of the evaluation's tokens (between the "
        f"halves of calibration: {numbers['usual_channels']:,}): {named}; add text "
        "like the evaluation's to calibration."
    ]


def _of_experts(numbers: dict[str, Any]) -> list[str]:
    rows = numbers["experts"]
    if not rows:
        return []
    named = "; ".join(
        f"{row['expert']} ({row['calibration']} of calibration, {row['evaluation']:,} of the evaluation)"
        for row in rows[: 2 * _NAMED]
    )
    return [
        f"Experts: {_counted(len(rows), 'expert')} that the evaluation routes to saw under {limits.EXPERT} tokens of "
        f"calibration: {named}{_more(rows, 2 * _NAMED)}; calibrate on more text, or on text like the evaluation's."
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _more(rows: list[dict[str, Any]], named: int = _NAMED) -> str:
    return f"; and {len(rows) - named} more" if len(rows) > named else ""
