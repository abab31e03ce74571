"""The tiny models of the x-ray, whose weights a test can change."""

from tests.inspect.conftest import mixture, plant

__all__ = ["mixture", "plant"]
