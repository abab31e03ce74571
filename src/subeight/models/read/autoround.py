"""Checkpoints of AutoRound (quant_method `auto-round`): the layouts of GPTQ and AWQ, with a zero point of their own.

`packing_format` says which: `auto_round` and `auto_round:gptqmodel` store zero points as they are,
`auto_round:auto_gptq` minus one, `auto_round:auto_awq` is AutoAWQ's gemm. `extra_config` has what single linears
(names or patterns) do otherwise.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from subeight.errors import ModelError
from subeight.models.read.awq import AwqReader
from subeight.models.read.gptq import GptqReader, IntScheme, int_scheme, matches, one_of
from subeight.models.read.reader import CodeReader
from subeight.models.read.safetensors import Stored

METHODS = ("auto-round", "intel/auto-round")
_SUBTRACTED = {"auto_round": 0, "auto_round:gptqmodel": 0, "auto_round:auto_gptq": 1}
_AWQ = "auto_round:auto_awq"
_BITS = tuple(range(2, 9))  # 5, 6 and 7 bits are packed without gaps too, unlike GPTQModel's


class AutoRoundReader(GptqReader):
    """Linears that AutoRound packed as GPTQ does."""

    method = "auto-round"

    @cached_property
    def subtracted(self) -> int:
        return _SUBTRACTED[_packing(self)]

    def scheme(self, name: str) -> IntScheme:
        return autoround_scheme(self, name)


class AutoRoundAwqReader(AwqReader):
    """Linears that AutoRound packed as AutoAWQ does."""

    method = "auto-round"

    @cached_property
    def layout(self) -> str:
        return "gemm"

    def scheme(self, name: str) -> IntScheme:
        found = autoround_scheme(self, name)
        if found.bits != 4:
            raise ModelError(f"{name} is said to have {found.bits} bits in AutoAWQ's layout, which has 4.")
        return found


def autoround_reader(config: Mapping[str, Any], stored: Mapping[str, Stored]) -> CodeReader:
    """The reader for what AutoRound's packing_format says."""
    reader = AutoRoundReader(config, stored)
    if int(config.get("act_bits") or 16) < 16:
        raise ModelError(
            f"The checkpoint quantizes inputs to {config['act_bits']} bits in AutoRound's own format, which cannot be "
            "read: save it with AutoRound's format llm_compressor."
        )
    return AutoRoundAwqReader(config, stored) if _packing(reader) == _AWQ else reader


def autoround_scheme(reader: CodeReader, name: str) -> IntScheme:
    """Bits, group and symmetry of one linear, `extra_config` included; an exact name goes before a pattern."""
    extra: dict[str, dict[str, Any]] = reader.config.get("extra_config") or {}
    found = extra.get(name)
    if found is None:
        patterns = (value for key, value in extra.items() if re.escape(key) != key and matches(f".*(?:{key})", name))
        found = next(patterns, {})
    return int_scheme(name, {**reader.config, **found}, _BITS)


def _packing(reader: CodeReader) -> str:
    return one_of(reader.config, ("packing_format", "backend"), "auto_round", (*_SUBTRACTED, _AWQ))
