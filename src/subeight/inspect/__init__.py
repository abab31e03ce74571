"""The outlier x-ray: what stretches the scales of a model, before anything is quantized."""

from subeight.inspect.xray import x_ray

__all__ = ["x_ray"]
