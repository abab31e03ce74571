"""The tiny models of the x-ray, whose weights a test can change, and those that are mixed."""

from tests.inspect.conftest import mixture, plant
from tests.probe.mixtures import llama, mixtral

__all__ = ["llama", "mixtral", "mixture", "plant"]
