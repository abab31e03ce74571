"""A model that is opened but not loaded: where it lies, its skeleton, its linears, and its weights one at a time."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from subeight.errors import ModelError
from subeight.models.linear_info import LinearInfo
from subeight.models.read.gguf import GgufTensors, gguf_config
from subeight.models.read.gguf_codes import GgufReader
from subeight.models.read.quantized import Codes, quantized_tensors
from subeight.models.read.safetensors import Stored, index_directory
from subeight.models.skeleton import Skeleton, one_line
from subeight.models.source import Source, locate
from subeight.models.structure import LinearView, Structures
from subeight.models.weights import GgufWeights, StoredWeights, Weights


class Model:
    """One causal LM on disk, full precision or quantized.

    `name` is a directory, a `.gguf` file, a hub id or the alias `smollm2`.

    Raises:
        ModelError: it is missing, damaged, or of an architecture that is not understood.
    """

    def __init__(self, name: str | Path, *, trust_remote_code: bool = False) -> None:
        self.source: Source = locate(str(name))
        self.trust_remote_code = trust_remote_code
        self._open(_load_config(self.source, trust_remote_code))

    def _open(self, config: PreTrainedConfig) -> None:
        trust_remote_code = self.trust_remote_code
        self.config: PreTrainedConfig = config
        self.skeleton = Skeleton(self.config, trust_remote_code=trust_remote_code)
        self.structures = Structures(self.skeleton)
        self.quantization: dict[str, Any] | None = getattr(self.config, "quantization_config", None)
        self.codes: Codes | None = None
        self.weights: Weights = self._open_weights()

    def _open_weights(self) -> Weights:
        modules = self.skeleton.model.named_modules()
        conv1d = [name for name, module in modules if isinstance(module, Conv1D)]
        if self.source.gguf is not None:
            tensors = GgufTensors(self.source.gguf, self.skeleton.model, gguf_config(self.source.gguf))
            codes = Codes(GgufReader(tensors, conv1d))
            self.codes = codes if codes.names else None
            return GgufWeights(tensors, self.skeleton.model)
        stored: dict[str, Stored] = dict(index_directory(self.source.directory))
        if self.quantization is not None:
            self.codes, stored = quantized_tensors(dict(self.quantization), stored, conv1d)
        return StoredWeights(stored, self.skeleton.model)

    def with_config(self, changes: Mapping[str, Any]) -> "Model":
        """The same checkpoint opened with other values of fields of its (text) config.

        Raises:
            ModelError: the architecture cannot be built so.
        """
        made = object.__new__(type(self))
        made.source, made.trust_remote_code = self.source, self.trust_remote_code
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            setattr(config.get_text_config(decoder=True), name, value)
        made._open(config)
        return made

    @property
    def label(self) -> str:
        """A short name for run directories and tables."""
        return self.source.label

    @property
    def directory(self) -> Path:
        return self.source.directory

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; raises ModelError where it has none."""
        options = {"gguf_file": self.source.gguf.name} if self.source.gguf else {}
        try:
            return AutoTokenizer.from_pretrained(
                self.directory, local_files_only=True, trust_remote_code=self.trust_remote_code, **options
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self.directory} has no tokenizer that transformers can load ({one_line(error)})."
            ) from error

    def generation_config(self) -> GenerationConfig | None:
        path = self.directory / "generation_config.json"
        return GenerationConfig.from_pretrained(self.directory) if path.is_file() else None

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the checkpoint's weights (of its embeddings, where they differ)."""
        return self.weights.dtype(self.skeleton.shell_parameters()[0])

    @cached_property
    def linears(self) -> list[LinearInfo]:
        """Every linear that a recipe can decide about: those of the blocks, the embeddings and the head."""
        found = [view.info for view in self.views()]
        return [*found, *self._outside()]

    def views(self) -> Iterator[LinearView]:
        """The linears of the blocks as views of their parameters, with the dtype that is stored."""
        for structure in self.structures:
            for view in structure.linears():
                yield replace(view, info=replace(view.info, dtype=self.weights.dtype(view.parameter)))

    def _outside(self) -> list[LinearInfo]:
        embedding = self.skeleton.model.get_input_embeddings()
        head = self.skeleton.model.get_output_embeddings()
        names = {id(module): name for name, module in self.skeleton.model.named_modules()}
        found = []
        for module, kind in ((embedding, "embedding"), (head, "tied" if self.skeleton.tied else "head")):
            if module is not None:
                name = names[id(module)]
                dtype = self.weights.dtype(f"{name}.weight")
                shape = tuple(module.weight.shape)
                found.append(LinearInfo(name, shape, None, name, None, kind, dtype))  # type: ignore[arg-type]
        return found

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of weights, config, tokenizer and chat template; together the baseline coordinate."""
        files = self.source.files()
        stored = ".safetensors" if self.source.gguf is None else ".gguf"  # a directory may hold both
        weights = [path for path in files if path.suffix == stored]
        tokenizer = [path for path in files if path.name.startswith(("tokenizer", "vocab", "merges", "special"))]
        template = [path for path in files if path.name.startswith("chat_template")]
        config = {k: v for k, v in self.config.to_dict().items() if k not in {"transformers_version", "_name_or_path"}}
        return {
            "weights": _hash_files(weights),
            "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16],
            "tokenizer": _hash_files(tokenizer),
            "chat_template": _hash_files(template),
        }

    @property
    def coordinate(self) -> str:
        """The fingerprint of the whole model in one hash."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _load_config(source: Source, trust_remote_code: bool) -> PreTrainedConfig:
    if not source.gguf and not (source.directory / "config.json").is_file():
        raise ModelError(f"{source.directory} has no config.json; give the directory of a transformers checkpoint.")
    try:
        if source.gguf:
            return AutoConfig.for_model(**gguf_config(source.gguf))
        return AutoConfig.from_pretrained(source.directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.directory}: transformers cannot read its config ({one_line(error)}).") from error


def _hash_files(paths: list[Path]) -> str:
    """sha256 over names and contents, 16 hex digits; weights are hashed by their bytes, so this reads them all once."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def torch_device(name: str) -> torch.device:
    """The device that `--device` names; raises ModelError where it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"--device was given {name!r}; allowed are cpu, cuda and cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda was asked for, but torch sees no CUDA device; use --device cpu.")
    return device
