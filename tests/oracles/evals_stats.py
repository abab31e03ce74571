"""The studentised cluster bootstrap and the linearised t-interval, written out with loops over tokens and documents."""

import math

import numpy as np
from scipy.stats import t


def by_document(values, clusters):
    documents = {}
    for value, cluster in zip(values, clusters, strict=True):
        documents.setdefault(cluster, []).append(value)
    return [documents[name] for name in sorted(documents)]


def ratio(documents_a, documents_b):
    return math.fsum(x for d in documents_a for x in d) / math.fsum(x for d in documents_b for x in d)


def standard_error(documents_a, documents_b):
    groups = len(documents_a)
    estimate = ratio(documents_a, documents_b)
    size = math.fsum(x for d in documents_b for x in d) / groups
    residuals = [(math.fsum(x) - estimate * math.fsum(y)) / size for x, y in zip(documents_a, documents_b, strict=True)]
    return math.sqrt(math.fsum(r * r for r in residuals) / (groups - 1) / groups)


def studentised(a, b, clusters, seed, resamples, level=0.95):
    """Of sum(a) / sum(b); the draws of documents come from the same generator as the fast version's."""
    first, second = by_document(a, clusters), by_document(b, clusters)
    groups = len(first)
    rng = np.random.default_rng(seed)
    estimate, error = ratio(first, second), standard_error(first, second)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(groups, size=groups)
        tops, bottoms = [first[g] for g in chosen], [second[g] for g in chosen]
        drawn.append((ratio(tops, bottoms) - estimate) / standard_error(tops, bottoms))
    upper, lower = np.quantile(drawn, [(1 + level) / 2, (1 - level) / 2])
    return estimate, estimate - upper * error, estimate - lower * error


def linearised_t(a, b, clusters, level=0.95):
    """The t-interval of sum(a) / sum(b) by the delta method, from totals per document."""
    first, second = by_document(a, clusters), by_document(b, clusters)
    half = t.ppf((1 + level) / 2, len(first) - 1) * standard_error(first, second)
    estimate = ratio(first, second)
    return estimate, estimate - half, estimate + half


def mcnemar(b, c):
    """Both tails of a fair coin, by counting."""
    n = b + c
    probability = [math.comb(n, k) / 2**n for k in range(n + 1)]
    return min(1.0, math.fsum(p for p in probability if p <= probability[b] * (1 + 1e-9)))


def weighted_quantile(values, share):
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return next(v for i, v in enumerate(ordered, 1) if i >= share * len(ordered) * (1 - 1e-12))
