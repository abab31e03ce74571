"""The kinds of faults, each one function `(base, chooser, directory, attempt) -> Draft`."""

from benchmarks.faults.kinds import baseline, calibration, healthy, layers, packages, runtime

KINDS = {
    "scales": layers.scales,
    "zeros": layers.zeros,
    "pair": layers.pair,
    "block": layers.block,
    "head": layers.head,
    "permuted": baseline.permuted,
    "stale": baseline.stale,
    "fine-tune": baseline.fine_tune,
    "bos": baseline.bos,
    "template": baseline.template,
    "rope": baseline.rope,
    "norm": baseline.norm,
    "category": calibration.category,
    "range": calibration.clipped,
    "expert": calibration.expert,
    "kernel": runtime.kernel,
    "package": packages.package,
    "healthy": healthy.plain,
    "awq": healthy.awq,
    "rotated": healthy.rotated,
    "spread": healthy.spread,
}
HEALTHY = ("healthy", "awq", "rotated", "spread")
