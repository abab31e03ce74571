"""Numbers below 8 bits: formats, their grids, scales, codes and packing. It knows nothing of models."""

from subeight.formats.activations import fake_quantize
from subeight.formats.apart import Sparse, Thin
from subeight.formats.format import Format
from subeight.formats.grids import GRIDS, Grid
from subeight.formats.packing import pack, unpack
from subeight.formats.qtensor import QTensor, quantize, quantize_columns
from subeight.formats.scales import Scales
from subeight.formats.search import find_scales

__all__ = [
    "GRIDS",
    "Format",
    "Grid",
    "QTensor",
    "Scales",
    "Sparse",
    "Thin",
    "fake_quantize",
    "find_scales",
    "pack",
    "quantize",
    "quantize_columns",
    "unpack",
]
