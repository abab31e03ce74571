"""Suspect 3, kernels: does the packed model compute what its dequantized twin computes?

The twin is the candidate as our own readers dequantize it, streamed in float32; the packed model is the checkpoint as
plain transformers loads and runs it in the user's environment. Both answer the same share of the failing prompts. Where
they differ, it is found out which linear errs, and whether its weight was loaded otherwise.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from subeight.diagnose import served
from subeight.diagnose.case import Case, Examined
from subeight.diagnose.finding import Cause, Finding
from subeight.diagnose.products import Product, common_shape, differing_blocks, plain_parameters, products
from subeight.diagnose.share import Share
from subeight.errors import ParityError
from subeight.evals.loss import Loss, recovered
from subeight.evals.stats import Interval
from subeight.export.packed import Checkpoint, PackedRunner, kept_runner
from subeight.models.model import Model

TOKENS = 512
BOUND = 2e-3  # of the logits' spread: two float32 implementations in another order of sums
NAMED = 0.1  # the share of the packed model's loss from which on a difference is worth naming
_SHOWN = 40


def examine(case: Case) -> Examined:
    """The packed model against its twin, and the server that really fails where `--served` names one.

    A guilty kernel leaves the case as it is: the twin, which the later suspects examine, does not have it.
    """
    began = time.perf_counter()
    twin = _as_stored(case.candidate)
    finding = _packed(case, twin)
    if case.settings.served is not None:
        finding = _joined(finding, served.examine(case, twin))
    return replace(finding, seconds=time.perf_counter() - began, command=_command(case)), case


def _as_stored(model: Model) -> Model:
    """The candidate as it lies on disk, without what earlier suspects repaired in memory."""
    return Model(model.source.gguf or model.directory, trust_remote_code=model.trust_remote_code)


def _command(case: Case) -> str:
    return " ".join(case.settings.command)


def _packed(case: Case, twin: Model) -> Finding:
    reason = _too_large(case, twin)
    if reason:
        return Finding("kernels", "skipped", reason)
    runner = kept_runner(case.settings.python)
    try:
        return _compared(case, twin, runner)
    except ParityError as error:
        return Finding(
            "kernels",
            "unknown",
            f"The packed model could not be run, so its kernels are not tested: {error}. Give the interpreter of the "
            "environment that runs it (--python).",
        )
    finally:
        if runner.is_alive:
            runner.release()


def _too_large(case: Case, twin: Model) -> str | None:
    needed = 5 * sum(parameter.numel() for parameter in twin.skeleton.model.parameters())
    allowed = case.settings.max_memory or psutil.virtual_memory().available
    if needed <= allowed:
        return None
    return (
        f"Loading the packed model whole in float32 takes {needed:,} bytes and {allowed:,} are allowed, so its kernels "
        "are not tested; run it on a larger machine."
    )


@dataclass(frozen=True)
class _Whole:
    """Both models on the same prompts: their losses, the largest difference of a logit, and what noise may be."""

    share: Share
    twin: Loss
    packed: Loss
    logits_max: float
    bound: float
    report: dict[str, list[str]]

    @property
    def recovered(self) -> Interval:
        """The share of the packed model's loss that its twin does not have."""
        return recovered(self.packed, self.twin)

    def details(self, found: Sequence[Product] = ()) -> dict[str, Any]:
        worst = sorted(found, key=lambda product: -max(product.error or 0.0, product.held or 0.0))
        return {
            "layers": [{"name": p.name, "relative_error": p.error, "held_error": p.held} for p in worst[:_SHOWN]],
            "logits_max": self.logits_max,
            "logits_bound": self.bound,
            "tokens": self.share.tokens,
            "prompts": len(self.share.samples),
            "loss_twin": self.twin.value,
            "loss_packed": self.packed.value,
            "loading": {kind: names[:_SHOWN] for kind, names in self.report.items() if names},
        }


def _compared(case: Case, twin: Model, runner: PackedRunner) -> Finding:
    share = Share.worst(case, TOKENS)
    whole = _whole(case, twin, runner, share)
    ran = f"on {len(share.samples)} of {share.prompts} failing prompts, worst first ({share.tokens} tokens, float32)"
    blocks = float(len(twin.skeleton.blocks)) * len(share.samples) / max(share.prompts, 1)
    done = Finding("kernels", "cleared", "", evaluations=2, block_forwards=2 * blocks)
    if whole.logits_max <= whole.bound:
        return replace(
            done,
            evidence=f"The packed model computes what its dequantized twin computes {ran}: logits differ by at most "
            f"{whole.logits_max:.2g}, within float noise ({whole.bound:.2g}).",
            details=whole.details(),
        )
    found = products(runner, twin, share.rows()[0][0])
    gained, details = whole.recovered, whole.details(found)
    said = (
        f"{ran.capitalize()}, the packed model loses {whole.packed.value:.4g} and its dequantized twin "
        f"{whole.twin.value:.4g}; logits differ by up to {whole.logits_max:.3g}."
    )
    if gained.value <= -NAMED:
        words = (
            f"{said} The packed model is the better one, so Subeight reads this checkpoint otherwise than "
            "transformers does; what the other suspects say about it is in doubt."
        )
        return replace(done, verdict="unknown", evidence=words, details=details)
    if gained.value < NAMED or not _sure(gained):
        words = f"{said} That is more than float noise, but it is not what the prompts lose."
        return replace(done, evidence=words, details=details)
    causes = tuple(replace(cause, recovered=gained) for cause in _causes(runner, twin, share, found, whole.report))
    return replace(done, verdict="guilty", evidence=said, causes=causes, details=details)


def _sure(share: Interval) -> bool:
    """Whether the interval is above 0; one prompt alone has none, and both models are deterministic."""
    return share.low > 0 or share.ci is None


def _whole(case: Case, twin: Model, runner: PackedRunner, share: Share) -> _Whole:
    source = twin.source
    checkpoint = Checkpoint(twin.directory, source.gguf.name if source.gguf else None, twin.trust_remote_code)
    report = runner.load(checkpoint, str(case.computing.device))
    packed = runner.logits(*share.rows())
    ours = share.logits(twin, case.computing)
    difference = max(_largest(a, b) for a, b in zip(packed, ours, strict=True))
    spread = float(torch.cat(ours).std())
    return _Whole(share, share.loss(ours), share.loss(packed), difference, BOUND * max(spread, 1.0), report)


def _largest(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        raise ParityError(f"its vocabulary is {found.shape[-1]}, but its config says {expected.shape[-1]}")
    difference = (found - expected).abs()
    return float(difference.max()) if bool(torch.isfinite(difference).all()) else float("inf")


def _causes(
    runner: PackedRunner, twin: Model, share: Share, found: Sequence[Product], report: dict[str, list[str]]
) -> list[Cause]:
    """Who errs: linears not loaded, unpacked wrong, or computing wrong; where none does, what else the model holds."""
    absent = [*report["missing_keys"], *report["mismatched_keys"]]
    wrong = [product for product in found if product.errs]
    lost = [p for p in wrong if any(f"{p.name}." in key for key in absent)]
    held = [p for p in wrong if p.is_unpacked_wrong and p not in lost]
    rest = [p for p in wrong if p not in lost and p not in held]
    causes = [
        _cause("load", lost, "were not loaded from the checkpoint, but newly made"),
        _cause("unpacking", held, "hold another weight after loading than the checkpoint's codes say"),
        _cause("kernel", rest, "hold the right weight, and compute something else with it"),
    ]
    made = [cause for cause in causes if cause is not None]
    return made or _beside_linears(runner, twin, share)


def _cause(kind: str, found: Sequence[Product], what: str) -> Cause | None:
    if not found:
        return None
    shape = common_shape(found)
    alike = f" of the shape {shape[0]} x {shape[1]}" if shape else ""
    named = found[0].name if len(found) == 1 else f"{len(found)} linears{alike}, {found[0].name} the first,"
    where = f"{named}{alike}" if len(found) == 1 else named
    worst = max(max(product.error or 0.0, product.held or 0.0) for product in found)
    sentence = f"In the packed model {where} {what} (relative error up to {worst:.2g})."
    if len(found) == 1:
        sentence = sentence.replace("were not", "was not").replace(" hold ", " holds ").replace("compute ", "computes ")
    repair = {"kernel": [product.name for product in found]}
    return Cause("kernels", kind, tuple(product.name for product in found), sentence, repair=repair)


def _beside_linears(runner: PackedRunner, twin: Model, share: Share) -> list[Cause]:
    """What is left where every linear is right: norms, embeddings, biases; then whole blocks (attention, routing)."""
    other = plain_parameters(runner, twin)
    if other:
        places = tuple(sorted(other, key=lambda name: -other[name]))
        sentence = (
            f"In the packed model {places[0]} is not what the checkpoint holds (relative {other[places[0]]:.2g})."
        )
        return [Cause("kernels", "load", places, sentence, repair={"kernel": list(places)})]
    blocks = differing_blocks(runner, twin, share.rows()[0][0])
    if blocks:
        sentence = f"Every linear is right, but {blocks[0]} computes something else: its attention, norms or routing."
        return [Cause("kernels", "kernel", tuple(blocks), sentence, repair={"kernel": blocks})]
    return [Cause("kernels", "kernel", (), "The packed model errs, but no linear and no block of it does on its own.")]


def _joined(packed: Finding, asked: Finding) -> Finding:
    """Both halves as one finding: guilty where either is, unknown where either is and none is guilty."""
    order = ("guilty", "unknown", "cleared", "skipped")
    verdict = min((packed.verdict, asked.verdict), key=order.index)
    return replace(
        packed,
        verdict=verdict,
        evidence=f"{packed.evidence} {asked.evidence}".strip(),
        causes=packed.causes + asked.causes,
        evaluations=packed.evaluations + asked.evaluations,
        block_forwards=packed.block_forwards + asked.block_forwards,
        details={**packed.details, "served": dict(asked.details)},
    )
