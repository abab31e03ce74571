"""The small model that several suspects' tests damage copies of."""

from tests.probe.mixtures import llama

__all__ = ["llama"]
