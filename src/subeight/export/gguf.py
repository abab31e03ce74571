"""The target gguf: one file that llama.cpp loads, with the very numbers that the codes stand for.

Every linear gets the smallest type of ggml that holds its codes exactly (`formats/ggml.py`); matrices that are kept
stay in their own 16 or 32 bits, and vectors are float32, as llama.cpp has them. Nothing is rounded: what cannot be said
so is refused before a byte is written.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from subeight.errors import FormatError, OutputError
from subeight.export.checkpoint import TEMPORARY, is_full, no_space, publish
from subeight.export.gguf_architectures import Array, Family, describe, extra_tensors, family_of, laid_out
from subeight.export.gguf_vocabulary import require_vocabulary, write_vocabulary
from subeight.formats import QTensor
from subeight.formats.ggml import block_bytes, block_type, unsayable_blocks
from subeight.models.linear_info import Decided
from subeight.models.model import Model
from subeight.models.read.gguf_codes import ggml_word
from subeight.records.progress import progress

TARGET = "gguf"
FILE = "model.gguf"
_FLOATS = {torch.float16: "F16", torch.bfloat16: "BF16"}
_FILE_TYPES = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "MXFP4": "MXFP4_MOE"}


@dataclass(frozen=True)
class Placed:
    """One tensor of the file: the parameter that it holds ("": none), its name there, and its type."""

    parameter: str
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # of the weights, [out, in]

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of its bytes."""
        shape: tuple[int, ...] = gguf.quant_shape_to_byte_shape(self.shape, self.kind)
        return shape

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.stored))


def require_gguf(model: Model, sites: tuple[Decided, ...]) -> Family:
    """Raises OutputError, before anything is quantized, for a model or a plan that a GGUF file cannot hold."""
    family = family_of(model.config, list(model.skeleton.model.state_dict()))
    require_vocabulary(model.tokenizer(), model.config.vocab_size)
    for site in sites:
        if site.apart:
            raise _refusal(site.linear.name, "values set apart have no place there; leave outliers and lowrank out")
        if site.inputs is not None:
            raise _refusal(
                site.linear.name, f"llama.cpp rounds inputs in its own way, not as {site.inputs}; give inputs: null"
            )
        if site.weights is not None:
            reason = unsayable_blocks(site.weights, site.linear.shape[1])
            if reason is not None:
                raise _refusal(site.linear.name, reason)
    return family


def write_gguf(model: Model, sites: tuple[Decided, ...], path: Path, *, quiet: bool = False) -> list[Placed]:
    """Writes a quantized checkpoint as one GGUF file, which appears whole or not at all; returns its tensors.

    Raises:
        OutputError: a linear, the architecture or the tokenizer that the file cannot hold, or no space on the disk.
    """
    family = require_gguf(model, sites)
    placed = _placed(model, family)
    size = sum(tensor.nbytes for tensor in placed)
    if size > shutil.disk_usage(path.parent).free:
        raise no_space(path.parent, size)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family.architecture])
    _write_facts(writer, model, family, placed)
    for tensor in placed:
        writer.add_tensor_info(tensor.name, tensor.stored, np.dtype(np.uint8), tensor.nbytes, raw_dtype=tensor.kind)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress(len(placed), f"Writing {path.name}", "tensors", quiet=quiet) as advance:
            for tensor in placed:
                writer.write_tensor_data(_bytes(model, family, tensor))
                advance()
        writer.close()
        publish(temporary, path)
    except OSError as error:
        if is_full(error):
            raise no_space(path.parent, size) from error
        raise
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    return placed


def _write_facts(writer: gguf.GGUFWriter, model: Model, family: Family, placed: list[Placed]) -> None:
    writer.add_type("model")
    writer.add_name(model.label)
    writer.add_quantized_by("Subeight")
    sizes: Counter[str] = Counter()
    for tensor in placed:
        sizes[tensor.kind.name] += tensor.nbytes
    quantized = sizes.keys() - {"F32", "F16", "BF16"}
    most = max(quantized or sizes.keys(), key=lambda kind: (sizes[kind], kind))
    word = "ALL_F32" if most == "F32" else f"MOSTLY_{_FILE_TYPES.get(most, most)}"
    writer.add_file_type(gguf.LlamaFileType[word])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe(writer, model.config, family)
    write_vocabulary(writer, model.tokenizer(), model.config.vocab_size, model.config.to_json_string(use_diff=False))


def _placed(model: Model, family: Family) -> list[Placed]:
    """What the file will hold, in order; reads every code once, to find the type that holds it."""
    names = gguf.get_tensor_name_map(family.architecture, model.config.num_hidden_layers)
    state = model.skeleton.model.state_dict()
    found = [
        Placed("", name, GGMLQuantizationType.F32, value.shape) for name, value in extra_tensors(model.config).items()
    ]
    for parameter in _parameters(model):
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise OutputError(f"{parameter} has no name in a GGUF file of {model.config.model_type}.")
        found.append(Placed(parameter, name, _kind(model, parameter), tuple(state[parameter].shape)))
    return found


def _parameters(model: Model) -> Iterator[str]:
    skeleton = model.skeleton
    yield from (name for name in skeleton.shell_parameters() if name not in skeleton.tied_names)
    for index in range(len(skeleton.blocks)):
        yield from skeleton.block_parameters(index)


def _codes(model: Model, parameter: str) -> QTensor | None:
    name = parameter.removesuffix(".weight")
    return model.codes.read(name).to("cpu") if model.codes is not None and name in model.codes else None


def _kind(model: Model, parameter: str) -> GGMLQuantizationType:
    codes = _codes(model, parameter)
    if codes is None:
        matrix = model.skeleton.model.state_dict()[parameter].ndim > 1
        dtype = model.weights.dtype(parameter) if matrix else torch.float32
        return GGMLQuantizationType[_FLOATS.get(dtype, "F32")]
    try:
        return GGMLQuantizationType[block_type(codes)]
    except FormatError as error:
        raise _refusal(parameter.removesuffix(".weight"), str(error)) from error


def _bytes(model: Model, family: Family, tensor: Placed) -> Array:
    if not tensor.parameter:
        return extra_tensors(model.config)[tensor.name]
    codes = _codes(model, tensor.parameter)
    if codes is not None:
        rows = block_bytes(codes, tensor.kind.name).numpy()
    else:
        rows = _plain(model.weights.read(tensor.parameter), tensor.kind)
    return np.ascontiguousarray(laid_out(tensor.parameter, rows, model.config, family))


def _plain(value: Tensor, kind: GGMLQuantizationType) -> Array:
    if kind == GGMLQuantizationType.BF16:
        return value.contiguous().view(torch.int16).numpy()
    return value.to(torch.float16 if kind == GGMLQuantizationType.F16 else torch.float32).numpy()


def _refusal(name: str, reason: str) -> OutputError:
    return OutputError(f"A GGUF file cannot hold {name}: {reason}.")


def table(placed: list[Placed]) -> dict[str, dict[str, int]]:
    """How many tensors of each type the file holds, and in how many bytes; by llama.cpp's names of types."""
    found: dict[str, dict[str, int]] = {}
    for tensor in placed:
        row = found.setdefault(ggml_word(tensor.kind), {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += tensor.nbytes
    return found
