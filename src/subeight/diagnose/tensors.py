"""Are the candidate's tensors the baseline's? Every one of them, compared in the candidate's gauge.

What was not quantized must equal the baseline's within its storage; what was quantized must be a plausible rounding of
its namesake. What is not, is put back as the same format would round it (or as it was, if it was not quantized) and
measured: a low format is no fault of the baseline's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor

from subeight.diagnose.forensics import Verdict, examine_codes, examine_dense, fresh, heads_of, low_rank_share, relation
from subeight.errors import ModelError
from subeight.formats import QTensor
from subeight.models.align import align
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shelf import Shelf

_VECTOR = 1e-4  # relative difference that computing the gauge in float32 may leave
_USUAL = 2.5  # times the usual difference of its peers: what a dense weight of unknown format may have
_EVEN = 1.04  # the excess of nearly all groups where a weight was not rounded to nearest
_MARGIN = 0.1
_ALL = 1.05  # times what nine of ten linears have: where there are few blocks, peers alone are too few
_NOISY, _LOW_RANK = 0.7, 0.5  # correlation of noise about a weight; share that marks a merged low-rank update
_APART = 1.3  # times the median of the typical excess
_OUTLIERS = 3  # the linears far off their peers that are tried
_LEAST = 0.01  # a relative difference below which a dense weight of unknown format is not suspected


@dataclass(frozen=True, eq=False)
class Suspect:
    """A tensor that is not the baseline's: its verdict, and what the baseline has in its place."""

    name: str
    kind: str  # permuted, stale, tensor, scales, zeros
    words: str
    excess: float
    given: Tensor | None = None  # the weight to put back [out, in]; None: as the baseline has it
    unsure: bool = False  # nothing but an experiment tells it from error feedback

    @property
    def is_ours(self) -> bool:
        """Whether the baseline's examination answers for it; scales and zero points are the layers'."""
        return self.kind in ("permuted", "stale", "tensor")


@dataclass
class Tensors:
    """What the comparison of all tensors found."""

    gauge: Gauge
    suspects: list[Suspect]
    excess: dict[str, float]
    unquantized: dict[str, float] = field(default_factory=dict)  # relative differences
    allowed: dict[str, float] = field(default_factory=dict)
    is_noise: bool = False  # what most linears differ by is noise about the baseline's, where most of them differ

    @property
    def most_linears(self) -> bool:
        """Whether half of the linears or more are no plausible roundings of the baseline's."""
        linears = [suspect for suspect in self.suspects if suspect.kind == "stale" and not suspect.unsure]
        return 2 * len(linears) >= max(len(self.excess), 2)

    @property
    def is_other_model(self) -> bool:
        """Whether so much differs that it is another model: what was not quantized, or most linears by more than noise.

        Noise in all linears (codes off by one, a bad kernel that wrote them) beside norms and embeddings that are
        exactly the baseline's is damage that is spread evenly, not another model.
        """
        vectors = [name for name, difference in self.unquantized.items() if difference > self.allowed[name]]
        many = len(vectors) >= 3 and 3 * len(vectors) >= len(self.unquantized)
        # training reaches both ends at once; one of them alone may be a stale tensor
        ends = {name.removesuffix(".weight") for name in (self.gauge.ends.embedding, self.gauge.ends.head)}
        both = len(ends & self.unquantized.keys()) == 2 and ends <= set(vectors)
        return many or both or (self.most_linears and not self.is_noise)


@dataclass
class _Looker:
    """Looks at each pair of blocks while the gauge is found; `held` takes what would be put back, by number."""

    candidate: Model
    held: Shelf = field(default_factory=Shelf)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)

    def __call__(self, block: Block, other: Block) -> None:
        for view in block.structure.linears():
            self.see(view.info.name, block.weight(view), other.weight(view))

    def see(self, name: str, weight: Tensor, found: Tensor) -> None:
        stored = self._stored(name)
        if stored is None:
            self.dense[name] = float((weight - found).norm() / weight.norm().clamp_min(1e-30))
            return
        verdict = examine_codes(weight, stored)
        self.verdicts[name] = verdict
        if verdict.kind in ("permuted", "stale"):
            self.given[name] = len(self.held)
            self.held.append(fresh(weight, stored.format))

    def put_back(self, name: str) -> Tensor | None:
        """What belongs in a linear's place; None where it is as the baseline has it.

        Where most linears are another model's, rounding each of them anew tells no more than the baseline itself does.
        """
        stale = sum(verdict.kind == "stale" for verdict in self.verdicts.values())
        most = 2 * stale >= max(len(self.verdicts), 2) and self.verdicts[name].kind == "stale"
        return None if most or name not in self.given else self.held[self.given[name]]

    def has_codes(self, name: str) -> bool:
        return self.candidate.codes is not None and name in self.candidate.codes

    def _stored(self, name: str) -> QTensor | None:
        """The linear's codes; None where it is not quantized, or in a format that ours cannot say."""
        if self.candidate.codes is None or name not in self.candidate.codes:
            return None
        try:
            return self.candidate.codes.read(name)
        except ModelError:
            return None


def compare_tensors(
    baseline: Model, candidate: Model, device: torch.device | str = "cpu", held: Shelf | None = None
) -> Tensors:
    """Finds the gauge and judges every tensor on the way; each is read once, and what is wrong is kept in `held`."""
    look = _Looker(candidate, Shelf() if held is None else held)
    gauge = align(baseline, candidate, device=device, look=look)
    _see_ends(look, baseline, candidate, gauge)
    rounded = _rounded(look.dense, candidate)
    excess = {name: verdict.excess for name, verdict in look.verdicts.items()}
    made = Tensors(gauge, [], excess)
    for name, verdict in look.verdicts.items():
        if verdict.kind != "rounding":
            made.suspects.append(_suspect(name, verdict, candidate, look.put_back(name)))
    _judge_outliers(made, look.verdicts, baseline, candidate)
    if rounded:
        _judge_dense(made, rounded, gauge, baseline, candidate)
    linears = {*look.verdicts, *look.dense}
    parameters = {view.info.name: view.parameter for view in candidate.views()}
    for name, difference in gauge.differences.items():
        if name in look.verdicts or name in rounded:
            continue
        parameter = parameters.get(name, name if name not in linears else f"{name}.weight")
        allowed = _storage(baseline, candidate, parameter)
        made.unquantized[name], made.allowed[name] = difference, allowed
        if difference > allowed:
            words = gauge.findings.get(name, f"{name} was not quantized and is not the baseline's")
            made.suspects.append(Suspect(name, "tensor", f"{words.rstrip('.')} (by {difference:.2g})", difference))
    if made.most_linears:
        made.is_noise = _is_noise(made, baseline, candidate)
    elif look.verdicts:
        # Where all lie far off, those a little farther than the others are no other weights.
        far = _APART * median(verdict.typical for verdict in look.verdicts.values())
        near = {name for name, verdict in look.verdicts.items() if verdict.kind == "stale" and verdict.typical <= far}
        made.suspects = [suspect for suspect in made.suspects if suspect.name not in near]
    return made


def _is_noise(made: Tensors, baseline: Model, candidate: Model) -> bool:
    """Whether the linears that are farthest off are the baseline's and noise: well correlated, and of full rank."""
    stale = sorted((s for s in made.suspects if s.kind == "stale"), key=lambda suspect: -suspect.excess)
    pairs = [
        (weight, found) for _, weight, found in _read({s.name for s in stale[:5]}, made.gauge, baseline, candidate)
    ]
    alike = median(float(torch.nn.functional.cosine_similarity(a.flatten(), c.flatten(), 0)) for a, c in pairs)
    return alike > _NOISY and median(low_rank_share(a, c) for a, c in pairs) < _LOW_RANK


def _rounded(dense: Mapping[str, float], candidate: Model) -> dict[str, float]:
    """The differences of linears that were quantized in a way that we have no codes for."""
    if candidate.codes is not None:
        return {name: value for name, value in dense.items() if name in candidate.codes}
    return dict(dense) if any(value > _LEAST for value in dense.values()) else {}


def _see_ends(look: _Looker, baseline: Model, candidate: Model, gauge: Gauge) -> None:
    """Embeddings and head, where they are quantized; otherwise the gauge has compared them."""
    for info in candidate.linears:
        if info.block is not None or info.kind == "tied":
            continue
        if look.has_codes(info.name):
            weight = aligned_end(baseline, gauge, f"{info.name}.weight")
            look.see(info.name, weight, candidate.weights.read(f"{info.name}.weight").float())
        else:
            look.dense[info.name] = gauge.differences.get(info.name, 0.0)


def aligned_end(baseline: Model, gauge: Gauge, name: str) -> Tensor:
    """The baseline's embeddings or head in the gauge, float32."""
    ends = gauge.ends
    weight = baseline.weights.read(name).float()
    if name == ends.head and ends.norm is not None:
        if gauge.rotation is not None:
            weight = (weight * (baseline.weights.read(ends.norm).float() + ends.offset)) @ gauge.rotation
        return weight if gauge.final is None else weight * gauge.final
    return weight if gauge.rotation is None or name != ends.embedding else weight @ gauge.rotation


def _suspect(name: str, verdict: Verdict, candidate: Model, given: Tensor | None) -> Suspect:
    return Suspect(name, verdict.kind, _words(name, verdict, candidate.skeleton.head_dim), verdict.excess, given)


def _words(name: str, verdict: Verdict, head_dim: int | None) -> str:
    far = f"it lies {verdict.excess:.1f} times as far from it as rounding would put it"
    if verdict.kind == "permuted" and verdict.order is not None:
        heads = heads_of(verdict.order, head_dim)
        if heads is not None:
            swapped = [head for head, other in enumerate(heads) if head != other]
            here = " ".join(map(str, swapped[:8]))
            there = " ".join(str(heads[head]) for head in swapped[:8])
            more = " ..." if len(swapped) > 8 else ""
            return f"{name} holds the baseline's heads in another order ({here}{more} are its {there}{more})"
        what = "columns" if verdict.by_columns else "rows"
        return f"{name} holds the baseline's {what} in another order"
    if verdict.kind == "stale":
        return f"{name} is not a rounding of the baseline's: {far}, and {verdict.words}"
    what = {"scales": "scales", "zeros": "zero points"}[verdict.kind]
    return f"{name} has the baseline's codes under other {what}: {far}"


def _judge_outliers(made: Tensors, verdicts: Mapping[str, Verdict], baseline: Model, candidate: Model) -> None:
    """Linears whose groups all lie farther off than those of their peers do: a neighbour of the baseline's weight."""
    typical = {name: verdict.typical for name, verdict in verdicts.items()}
    high = sorted(typical.values())[int(0.9 * (len(typical) - 1))] if typical else 0.0
    found: dict[str, float] = {}
    for name, verdict in verdicts.items():
        limit = _limit([typical[other] for other in typical if other != name and _tail(other) == _tail(name)])
        limit = max(limit, _ALL * high)
        if verdict.kind == "rounding" and verdict.even > _EVEN and typical[name] > limit:
            if verdict.mended == "stale":
                found[name] = typical[name] / limit
            else:
                made.suspects.append(_suspect(name, replace(verdict, kind=verdict.mended), candidate, None))
    names = set(sorted(found, key=lambda name: -found[name])[:_OUTLIERS])
    assert candidate.codes is not None or not names
    for name, weight, theirs in _read(names, made.gauge, baseline, candidate):
        given = fresh(weight, candidate.codes.read(name).format)  # type: ignore[union-attr]
        verdict = replace(verdicts[name], kind="stale", words=relation(weight, theirs))
        made.suspects.append(replace(_suspect(name, verdict, candidate, given), unsure=True))


def _limit(peers: list[float]) -> float:
    """What a typical excess may be, by those of the same name in other blocks."""
    if len(peers) < 3:
        return float("inf")
    ordered = sorted(peers)
    middle, high = ordered[len(ordered) // 2], ordered[int(0.9 * (len(ordered) - 1))]
    return high + max(3 * (high - middle), _MARGIN * (high if high > _EVEN else 0.5))


def _tail(name: str) -> str:
    return name.rpartition(".")[2]


def _judge_dense(
    made: Tensors, differences: Mapping[str, float], gauge: Gauge, baseline: Model, candidate: Model
) -> None:
    """Weights of unknown format: those that differ far more than weights of the same name in other blocks do."""
    usual = _usual(differences)
    names = {name for name, value in differences.items() if value > max(_USUAL * usual[name], _LEAST)}
    names |= {name for name in differences if name in gauge.findings and "not a rounding" in gauge.findings[name]}
    made.excess |= {name: value / max(usual[name], 1e-6) for name, value in differences.items()}
    if not names:
        return
    for name, weight, found in _read(names, gauge, baseline, candidate):
        verdict = examine_dense(weight, found, usual[name] * float(weight.norm()))
        if verdict.kind != "rounding":
            made.suspects.append(_suspect(name, verdict, candidate, None))


def _usual(differences: Mapping[str, float]) -> dict[str, float]:
    """The median difference of a weight's peers, those of the same last name; of all where it has less than three."""
    rounded = [value for value in differences.values() if value > 0] or [0.0]
    by_tail: dict[str, list[float]] = {}
    for name, value in differences.items():
        by_tail.setdefault(name.rpartition(".")[2], []).append(value)
    return {
        name: median(peers if len(peers := by_tail[name.rpartition(".")[2]]) > 2 else rounded) for name in differences
    }


def _read(names: set[str], gauge: Gauge, baseline: Model, candidate: Model) -> list[tuple[str, Tensor, Tensor]]:
    """Some linears once more: the baseline's aligned, and the candidate's."""
    found = []
    places = {info.name: info.block for info in candidate.linears}
    for index in sorted({block for name in names if (block := places[name]) is not None}):
        ours, theirs = (Block(model, index, torch.float32) for model in (baseline, candidate))
        gauge.apply(ours)
        views = [view for view in ours.structure.linears() if view.info.name in names]
        found += [(view.info.name, ours.weight(view).clone(), theirs.weight(view).clone()) for view in views]
    for name in sorted(name for name in names if places[name] is None):
        full = f"{name}.weight"
        found.append((name, aligned_end(baseline, gauge, full), candidate.weights.read(full).float()))
    return found


def _storage(baseline: Model, candidate: Model, name: str) -> float:
    """The relative difference that storing a parameter in the coarser of its two types explains."""
    try:
        types = [model.weights.dtype(name) for model in (baseline, candidate)]
    except KeyError:
        return _VECTOR
    return max(_VECTOR, *(torch.finfo(dtype).eps / 2 for dtype in types))
