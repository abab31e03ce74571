"""How one tensor is stored, as a noun and as text: `int4:g64:sym`, `nf4:g64`, `fp8`, `mxfp4`.

The text has up to five parts: grid, what shares a scale (`g64`, `channel`, `tensor`, `token`), `sym` or `asym`, the
type of the scales (`bf16`, `fp16`, `fp32`), and `had` where columns are rotated before. `bits` counts every stored bit:
codes, the padding of their rows, scales and zero points.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import ceil

import torch

from subeight.errors import FormatError
from subeight.formats.grids import GRIDS, Grid

SCALE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROTATED = "had"
_FIXED = {"mxfp4": (32, torch.float8_e8m0fnu), "nvfp4": (16, torch.float8_e4m3fn)}
_PER = ("group", "channel", "tensor", "token")
_SYMMETRY = {"sym": True, "asym": False}
_EXAMPLES = "int4:g64:sym, int8:channel, int8:token, nf4:g64, fp8, mxfp4 or nvfp4"


@dataclass(frozen=True)
class Format:
    """How one tensor is stored: the grid of its codes, which of them share a scale, the type of the scales.

    `rotated`: the codes are of the matrix with its columns turned by `rotation.rotate`.

    Scales are rounded to `scale_dtype` before codes are chosen. Zero points of affine formats are codes too.
    """

    grid: str
    per: str
    group: int | None = None
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16
    rotated: bool = False

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise FormatError(_unknown_grid(self.grid))
        if self.per not in _PER:
            raise FormatError(f"a scale per {self.per!r} is not known: choose one of {', '.join(_PER)}")
        if self.grid in _FIXED:
            self._check_fixed(*_FIXED[self.grid])
        elif self.scale_dtype not in SCALE_TYPES.values():
            raise FormatError(f"scales of {self.scale_dtype} are not known: choose bf16, fp16 or fp32")
        if self.per == "group" and (self.group is None or self.group < 1):
            raise FormatError(
                f"a group of {self.group} columns cannot be: give a positive number as in {self.grid}:g64"
            )
        if self.per != "group" and self.group is not None:
            raise FormatError(f"a scale per {self.per} has no group of {self.group}: give one or the other")
        if not self.symmetric and not self.grid.startswith("int"):
            raise FormatError(f"{self.grid} has no zero point: leave asym out, or choose int2 to int8")

    def _check_fixed(self, group: int, scale_dtype: torch.dtype) -> None:
        if (self.per, self.group) != ("group", group):
            raise FormatError(f"{self.grid} has one scale per {group} columns by definition: write {self.grid}")
        if self.scale_dtype not in (torch.bfloat16, scale_dtype):
            raise FormatError(f"{self.grid} defines the type of its scales: write {self.grid}")
        # the default of the field means "as the format says"
        object.__setattr__(self, "scale_dtype", scale_dtype)

    @classmethod
    def parse(cls, text: str) -> "Format":
        """The format that the text names; what it leaves out is `g64` (fp8: `channel`), `sym` and `bf16`."""
        grid, *rest = text.strip().lower().split(":")
        if grid not in GRIDS:
            raise FormatError(_unknown_grid(text))
        found: dict[str, str] = {}
        for part in rest:
            kind = _kind_of(part)
            if kind is None or kind in found:
                raise FormatError(_unknown_part(text, part, twice=kind is not None))
            found[kind] = part
        if grid in _FIXED:
            if set(found) - {"rotation"}:
                raise FormatError(f"format {text!r}: {grid} defines group and scales itself: write {grid}")
            return cls(grid, "group", _FIXED[grid][0], rotated="rotation" in found)
        place = found.get("per", "channel" if grid.startswith("fp8") else "g64")
        per, group = (place, None) if place in _PER else ("group", int(place[1:]))
        symmetric = _SYMMETRY[found.get("symmetry", "sym")]
        return cls(grid, per, group, symmetric, SCALE_TYPES[found.get("scale", "bf16")], "rotation" in found)

    def __str__(self) -> str:
        turned = [ROTATED] if self.rotated else []
        if self.grid in _FIXED:
            return ":".join([self.grid, *turned])
        place = f"g{self.group}" if self.per == "group" else self.per
        parts = [self.grid]
        if not (self.grid.startswith("fp8") and place == "channel"):
            parts.append(place)
        if self.grid.startswith("int"):
            parts.append("sym" if self.symmetric else "asym")
        if self.scale_dtype != torch.bfloat16:
            parts.append(next(name for name, dtype in SCALE_TYPES.items() if dtype == self.scale_dtype))
        return ":".join([*parts, *turned])

    @property
    def plain(self) -> "Format":
        """The same without the rotation: how the turned matrix is stored."""
        return replace(self, rotated=False)

    @property
    def values(self) -> Grid:
        """The grid itself: its codes, values and rounding."""
        return GRIDS[self.grid]

    @property
    def code_bits(self) -> int:
        """Bits of one code, before any scale."""
        return self.values.bits

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest code of an int grid, both used by symmetric formats too."""
        if not self.grid.startswith("int"):
            raise FormatError(f"{self.grid} has no integer levels: ask for them of int2 to int8")
        half = 2 ** (self.code_bits - 1)
        return -half, half - 1

    def groups(self, width: int) -> int:
        """How many scales a row of `width` columns has; the last group may be short."""
        return ceil(width / self.group) if self.group is not None else 1

    def bits(self, shape: tuple[int, int]) -> float:
        """Stored bits per weight of a matrix [out, in], with packing, scales and zero points counted."""
        return self.stored_bits(shape) / (shape[0] * shape[1])

    def stored_bits(self, shape: tuple[int, int]) -> int:
        """All bits that a matrix [out, in] takes, exactly as `QTensor.stored` lays them out."""
        rows, width = shape
        scale_rows = 1 if self.per == "tensor" else rows
        groups = self.groups(width)
        total = packed_bits(rows, width, self.code_bits) + scale_rows * groups * self.scale_dtype.itemsize * 8
        if not self.symmetric:
            total += packed_bits(groups, scale_rows, self.code_bits)
        if self.grid == "nvfp4":
            total += 32
        return total


def packed_bits(rows: int, columns: int, bits: int) -> int:
    """Bits of a packed matrix: whole 32-bit words per row below 8 bits, plain bytes at 8."""
    return rows * columns * 8 if bits == 8 else rows * ceil(columns * bits / 32) * 32


def _kind_of(part: str) -> str | None:
    if part == ROTATED:
        return "rotation"
    if part in _SYMMETRY:
        return "symmetry"
    if part in SCALE_TYPES:
        return "scale"
    if part in _PER[1:] or re.fullmatch(r"g[0-9]{1,7}", part):
        return "per"
    return None


def _unknown_grid(text: str) -> str:
    grid = text.split(":", maxsplit=1)[0].strip().lower()
    close = get_close_matches(grid, GRIDS, n=1, cutoff=0.5)
    hint = f": did you mean {close[0]}?" if close else ":"
    return f"format {text!r} is not known{hint} Allowed are {', '.join(GRIDS)}, written like {_EXAMPLES}"


def _unknown_part(text: str, part: str, *, twice: bool) -> str:
    known = ["g32", "g64", "g128", *_PER[1:], *_SYMMETRY, *SCALE_TYPES, ROTATED]
    close = get_close_matches(part, known, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close and not twice else ""
    fault = "says the same thing twice with" if twice else "has the unknown part"
    return f"format {text!r} {fault} {part!r}{hint}: write it like {_EXAMPLES}"
