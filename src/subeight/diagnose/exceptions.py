"""Places that stand out before anything is measured: odd formats, quantized ends, codes that forensics doubt."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from subeight.diagnose.case import Case
from subeight.diagnose.sites import Sites
from subeight.models.model import Model

_FAR = 1.5  # times the usual difference
_FEWER = 0.95  # of the usual bits a weight
_PROPORTION = 3.0  # times its share of the weights that a group must recover to be out of proportion


@dataclass(frozen=True)
class Group:
    """Places that are tried together, and the kind of fault that they would be."""

    kind: str
    names: tuple[str, ...]
    outside: bool = False

    def is_out_of_proportion(self, share: float, sites: Sites) -> bool:
        """Whether the group recovers more than its part of the weights would by itself.

        Embeddings or a head of fewer bits than the rest are out of proportion wherever they are guilty.
        """
        if self.outside:
            return True
        mine = sum(sites.counts[name] for name in self.names)
        return share >= min(0.9, _PROPORTION * mine / sum(sites.counts.values()))


def exceptions_of(case: Case, sites: Sites) -> Iterator[Group]:
    """The groups, the most telling first."""
    doubted = tuple(name for name in sites.names if name in sites.hints)
    if doubted:
        yield Group("doubted", doubted)
    blocks = len(case.candidate.skeleton.blocks)
    for name in sites.names:
        if not 0 <= sites.position[name] < blocks and _is_coarser(case.candidate, sites, name):
            yield Group("format", (name,), outside=True)
    yield from _coarse(sites, blocks)


def _is_coarser(model: Model, sites: Sites, name: str) -> bool:
    """Whether a linear is stored in fewer bits than most; where bits are not known, whether it differs far more."""
    codes = model.codes
    if codes is None or name not in codes:
        return sites.errors[name] > _FAR * median(sites.errors.values())
    bits = {other: codes.nbytes(other) / sites.counts[other] for other in sites.names if other in codes}
    return bits[name] < _FEWER * median(bits.values())


def _coarse(sites: Sites, blocks: int) -> Iterator[Group]:
    """Linears of fewer bits than most have, block by block."""
    usual = sites.usual
    if usual is None:
        return
    found: dict[int, list[str]] = defaultdict(list)
    for name in sites.names:
        format = sites.formats[name]
        if format is not None and format.code_bits < usual.code_bits and 0 <= sites.position[name] < blocks:
            found[sites.position[name]].append(name)
    for block in sorted(found):
        yield Group("format", tuple(found[block]))
