"""Where the failure is, and what the failing prompts reach in the model that the calibration text does not.

Nothing is found guilty here: this only says whether the costly experiment is worth its price.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from subeight.diagnose.case import Case
from subeight.errors import InputError
from subeight.evals.loss import Loss
from subeight.probe import reach as limits
from subeight.probe.coverage import coverage
from subeight.text import Sample, compare_coverage

CONFINED = 1.5  # times the loss elsewhere, from bound to bound, makes a failure of one category
UNSEEN = 0.15  # of a category's tokens never occur in calibration
TIMES = 1.5  # as many as of other text: the second half of calibration against its first, or the other prompts
MANY = 0.5  # channels beyond calibration's, per input of the model; two or three are found in healthy cases
WEIGHTS = 2e11  # weights times tokens that comparing two texts may cost
FEWEST = 2048  # tokens of each text that are compared at least


@dataclass(frozen=True)
class Confinement:
    """The category that lost most, and how it stands to the others and to healthy prompts."""

    worst: str
    categories: dict[str, dict[str, Any]]
    is_confined: bool
    ratio: float | None  # of the worst to everything else; None: there is nothing else

    def words(self) -> str:
        """In a sentence."""
        if self.ratio is None:
            return f"All failing prompts are of one category, {self.worst}, and there are no others to compare with."
        if self.is_confined:
            return f"The failure is confined to {self.worst}: it loses {self.ratio:.1f} times as much as the rest."
        return f"The failure is not confined to a category: {self.worst} loses most, {self.ratio:.1f} times the rest."


def confinement(loss: Loss, control: Loss | None, seed: int) -> Confinement:
    """Whether one category loses surely more than the other prompts, healthy ones included.

    Categories differ for a healthy model too, so this is a suspicion and not a verdict.
    """
    parts = loss.categories()
    worst = next(iter(parts))
    rest = loss.only(loss.category != worst)
    healthy = None if control is None else control.only(control.category != worst)
    others = [other for other in (rest, healthy) if other is not None and len(other.total)]
    rows = {
        name: {"loss": part.value, "loss_ci": part.interval(seed).ci, "prompts": len(part.total)}
        for name, part in parts.items()
    }
    if not others:
        return Confinement(worst, rows, False, None)
    mine = parts[worst].interval(seed)
    bounds = [other.interval(seed) for other in others]
    highest = max(bounds, key=lambda other: other.value)
    ratio = mine.value / highest.value if highest.value > 0 else float("inf")
    sure = bool(mine.low > highest.high) and ratio >= CONFINED
    return Confinement(worst, rows, sure, ratio)


@dataclass(frozen=True)
class Reached:
    """What the failing prompts reach and calibration does not."""

    unseen: float = 0.0  # share of the worst category's tokens that calibration never holds
    usual: float = 0.0  # share of the second half of calibration that its first half never holds
    elsewhere: float | None = None  # share of the other categories' tokens
    warnings: tuple[str, ...] = ()  # scripts, special tokens, channels
    ranges: list[dict[str, Any]] = field(default_factory=list)
    channels: list[dict[str, Any]] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=lambda: {"calibration": 0, "evaluation": 0})
    text: dict[str, Any] = field(default_factory=dict)

    @property
    def is_beyond(self) -> bool:
        """Whether calibration missed something of the worst category."""
        other = self.usual if self.elsewhere is None else min(self.usual, self.elsewhere)
        return (self.unseen >= UNSEEN and self.unseen >= TIMES * other) or bool(self.warnings)

    def words(self, worst: str) -> str:
        """In a sentence or two."""
        said = [
            f"{self.unseen:.0%} of the tokens of {worst} never occur in the calibration text (of its own second half "
            f"{self.usual:.0%} never occur in its first)."
        ]
        return " ".join([*said, *(f"{line.rstrip('.')}." for line in self.warnings)])


def reached_of(case: Case, ids: Tensor, prompts: list[Sample], worst: str) -> Reached:
    """Runs some of both texts through the baseline, and compares what they reach in it.

    Args:
        ids: the calibration's [sequences, length].
        prompts: the failing prompts.
        worst: the category that lost most.
    """
    tokenizer = case.baseline.tokenizer()
    rows = ids.tolist()
    mine = [sample for sample in prompts if sample.category == worst]
    text = compare_coverage(rows, [sample.ids for sample in mine], tokenizer)
    healthy = () if case.control is None else case.control.sequences.samples
    others = [sample.ids for sample in (*prompts, *healthy) if sample.category != worst]
    elsewhere = compare_coverage(rows, others, tokenizer).unseen_tokens if others else None
    half = len(rows) // 2
    usual = compare_coverage(rows[:half], rows[half:], tokenizer).unseen_tokens if half else 0.0
    weights = sum(linear.shape[0] * linear.shape[1] for linear in case.baseline.linears if linear.block is not None)
    most = max(FEWEST, int(WEIGHTS / max(weights, 1)))
    part = ids[: max(2, most // ids.shape[1])]
    found: dict[str, Any] = {}
    with suppress(InputError):  # padding that cannot be told from tokens: scripts and tokens are compared all the same
        found = coverage(
            case.baseline,
            part,
            _some(mine, prompts, min(most, part.numel())),
            tokenizer,
            dtype=case.computing.dtype,
            device=case.computing.device,
            quiet=case.computing.quiet,
        )
    warned = [line for line in text.warnings if "never occur" not in line]
    if sum(row["count"] for row in found.get("channels", ())) >= MANY * found.get("groups", 0):
        warned += [line for line in found.get("warnings", ()) if line.startswith("Channels")]
    return Reached(
        text.unseen_tokens,
        usual,
        elsewhere,
        tuple(warned),
        found.get("ranges", [])[: limits.LISTED],
        found.get("channels", [])[: limits.LISTED],
        found.get("experts", []),
        found.get("tokens", {"calibration": 0, "evaluation": 0}),
        text.as_dict(),
    )


def _some(first: list[Sample], every: list[Sample], tokens: int) -> list[Sample]:
    """Prompts in turn of the worst category and of all, up to so many tokens; one at least."""
    rest = [sample for sample in every if sample not in first]
    turns = [sample for pair in zip(first, rest, strict=False) for sample in pair]
    turns += first[len(rest) :] or rest[len(first) :]
    chosen: list[Sample] = []
    for sample in turns:
        if chosen and sum(len(other.ids) for other in chosen) + len(sample.ids) > tokens:
            break
        chosen.append(sample)
    return chosen
