"""How keys and values are stored: a format each, how scales run, and which tokens stay in full precision.

As text: `int4:g64`, `int4:g64,window=128,sinks=4`, `keys=int4:g64,values=int2:g32,axis=token,rotate`, `none`; single
layers: `int2:g64,0-3+7.keys=int4:g64,0.values=none`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches

from subeight.errors import FormatError, RecipeError
from subeight.formats import Format

AXES = ("channel", "token")
ROPES = ("after", "before")
SIDES = ("keys", "values")
_SINGLE = re.compile(r"(?P<layers>\d{1,4}(?:-\d{1,4})?(?:\+\d{1,4}(?:-\d{1,4})?)*)\.(?P<side>keys|values)")
EXAMPLE = "int4:g64,window=128,sinks=4 or keys=int8:token,values=int4:g64,axis=token"


@dataclass(frozen=True)
class LayerPolicy:
    """What one layer stores: None is full precision."""

    keys: Format | None
    values: Format | None


@dataclass(frozen=True)
class KVPolicy:
    """How a model's keys and values are stored.

    Attributes:
        keys, values: formats; None leaves them as they are.
        axis: how the keys' groups run: `channel` along the tokens, so that each channel has scales of its own (KIVI,
            Liu et al. 2024, https://arxiv.org/abs/2402.02750), `token` along the channels. Values are always `token`.
        window: how many of the latest tokens stay in full precision, and up to one group more until it is full.
        sinks: how many of the first tokens do (Xiao et al. 2023, https://arxiv.org/abs/2309.17453).
        rope: whether keys are stored as they are `after` the rotary embedding, or as they were `before` it.
        rotate: keys and values are rounded in a rotated basis (QuaRot, Ashkboos et al. 2024,
            https://arxiv.org/abs/2404.00456).
        layers: other formats for single layers.
    """

    keys: Format | None = None
    values: Format | None = None
    axis: str = "channel"
    window: int = 128
    sinks: int = 4
    rope: str = "after"
    rotate: bool = False
    layers: Mapping[int, LayerPolicy] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, allowed in (("axis", AXES), ("rope", ROPES)):
            if getattr(self, name) not in allowed:
                raise RecipeError(f"KV policy: {name} is {getattr(self, name)!r}; choose {' or '.join(allowed)}.")
        if self.window < 0 or self.sinks < 0:
            raise RecipeError("KV policy: window and sinks count tokens; give 0 or more.")
        every = LayerPolicy(self.keys, self.values)
        object.__setattr__(self, "layers", {layer: one for layer, one in self.layers.items() if one != every})
        for one in (every, *self.layers.values()):
            for format in (one.keys, one.values):
                _check(format)

    @classmethod
    def parse(cls, text: str) -> KVPolicy:
        """The policy that the text says; what it leaves out is as the fields' defaults.

        Raises:
            RecipeError: a part is unknown, with what was probably meant.
        """
        if text.strip().lower() in ("none", "full"):
            return cls()
        given: dict[str, object] = {}
        single: dict[tuple[int, str], Format | None] = {}
        for part in (piece.strip() for piece in text.split(",")):
            name, equals, value = part.partition("=")
            if not equals and name != "rotate":
                given |= dict.fromkeys(("keys", "values"), _format(name, text))
            elif name in ("keys", "values"):
                given[name] = _format(value, text)
            elif (found := _SINGLE.fullmatch(name)) and (layers := _numbers(found["layers"])):
                single |= dict.fromkeys(((layer, found["side"]) for layer in layers), _format(value, text))
            elif name in ("window", "sinks") and value.isdigit():
                given[name] = int(value)
            elif name in ("axis", "rope"):
                given[name] = value
            elif name == "rotate" and value in ("", "true", "false"):
                given[name] = value != "false"
            else:
                raise RecipeError(_unknown(text, part, name))
        plain = cls(**given)  # type: ignore[arg-type]
        return plain.with_sides(single)

    def __str__(self) -> str:
        if self.is_full:
            return "none"
        keys, values = (str(format or "none") for format in (self.keys, self.values))
        parts = [keys] if keys == values else [f"keys={keys}", f"values={values}"]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("window", "sinks", "axis", "rope") and value != item.default:
                parts.append(f"{item.name}={value}")
        parts += ["rotate"] if self.rotate else []
        return ",".join([*parts, *self._singles()])

    def _singles(self) -> list[str]:
        """Single layers that are otherwise, those alike together."""
        alike: dict[tuple[str, str], list[int]] = {}
        for layer, one in sorted(self.layers.items()):
            for side in SIDES:
                format = getattr(one, side)
                if format != getattr(self, side):
                    alike.setdefault((side, str(format or "none")), []).append(layer)
        return [f"{_runs(layers)}.{side}={format}" for (side, format), layers in alike.items()]

    @property
    def is_full(self) -> bool:
        """Whether nothing is rounded."""
        everywhere = (LayerPolicy(self.keys, self.values), *self.layers.values())
        return all(one.keys is None and one.values is None for one in everywhere)

    def of_layer(self, index: int) -> LayerPolicy:
        """What this layer stores."""
        return self.layers.get(index, LayerPolicy(self.keys, self.values))

    def with_layers(self, layers: Mapping[int, LayerPolicy]) -> KVPolicy:
        """The same with other formats for single layers."""
        return replace(self, layers={**self.layers, **layers})

    def with_sides(self, sides: Mapping[tuple[int, str], Format | None]) -> KVPolicy:
        """The same with other formats for the keys or the values of single layers."""
        layers = dict(self.layers)
        for (layer, side), format in sides.items():
            layers[layer] = replace(layers.get(layer, LayerPolicy(self.keys, self.values)), **{side: format})
        return replace(self, layers=layers)

    def require_layers(self, count: int) -> None:
        """Refuses single layers that a model of so many does not have.

        Raises:
            RecipeError: there are such.
        """
        beyond = max(self.layers, default=-1)
        if beyond >= count:
            raise RecipeError(f"KV policy {self}: layer {beyond} is named, but the model's are 0 to {count - 1}.")

    def bits(self, head_dim: int, layer: int | None = None) -> tuple[float, float]:
        """Stored bits of a key and of a value beyond window and sinks, 16 where nothing is rounded."""
        one = LayerPolicy(self.keys, self.values) if layer is None else self.of_layer(layer)
        return stored_bits(one.keys, head_dim, self.axis), stored_bits(one.values, head_dim, "token")


def parse_format(text: str) -> Format:
    """A format that keys and values can be stored in.

    Raises:
        RecipeError: it is none, or has no scale per token or group.
    """
    format = _format(text, text)
    if format is None:
        raise RecipeError(f"KV policy: {text} rounds nothing; write int4:g64, int8:token or fp8:token.")
    _check(format)
    return format


def run_of(format: Format) -> int:
    """How many tokens are rounded together where groups run along the tokens."""
    return format.group or 64


def stored_bits(format: Format | None, head_dim: int, axis: str) -> float:
    """Bits of one number: its code, and its part of the group's scale and of a byte for the zero point."""
    if format is None:
        return 16.0
    width = run_of(format) if axis == "channel" else min(format.group or head_dim, head_dim)
    return format.code_bits + (8 * format.scale_dtype.itemsize + (0 if format.symmetric else 8)) / width


def _check(format: Format | None) -> None:
    if format is None:
        return
    if format.rotated:
        raise RecipeError(f"KV policy: write `rotate` in place of {format}, which turns keys and values alike.")
    if format.per not in ("group", "token") or format.grid == "nvfp4":
        raise RecipeError(f"KV policy: {format} has a scale per {format.per}; write int4:g64, int8:token or fp8:token.")
    if format.group is not None and format.group * format.code_bits % 32 and format.code_bits < 8:
        raise RecipeError(f"KV policy: a group of {format} does not fill whole words; choose g32, g64 or g128.")


def _numbers(text: str) -> list[int]:
    """`0-3+7` as 0, 1, 2, 3, 7; nothing where one of its runs goes backwards."""
    ends = [part.partition("-") for part in text.split("+")]
    runs = [range(int(first), int(last or first) + 1) for first, _, last in ends]
    return [number for run in runs for number in run] if all(runs) else []


def _runs(numbers: Sequence[int]) -> str:
    """The reverse."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return "+".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _format(text: str, whole: str) -> Format | None:
    if text in ("none", "full"):
        return None
    try:
        return Format.parse(text)
    except FormatError as error:
        raise RecipeError(f"KV policy {whole!r}: {error}; write it like {EXAMPLE}.") from error


def _unknown(text: str, part: str, name: str) -> str:
    close = get_close_matches(name, [item.name for item in fields(KVPolicy)], n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close and close[0] != name else ""
    return f"KV policy {text!r} has the part {part!r}, which says nothing{hint}; write it like {EXAMPLE}."
