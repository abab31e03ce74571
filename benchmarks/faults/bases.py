"""What faults are planted in: the models, healthy candidates made of them by our own verbs, and prompts.

Everything is made once under a scratch directory and found there again; the names of recipes are those of RECIPES.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.faults.train import BUILTIN, MODELS, finetuned
from safetensors.torch import load_file, save_file
from torch import Tensor

import subeight
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked

BASES = ("dense", "mixtral", "smollm2")
_MIXED = (
    "rules:\n  - {match: '*.down_proj', weights: 'int4:g32:sym'}\n  - {match: '*.o_proj', weights: 'int4:g32:sym'}\n"
)
_MIXED += "  - {match: '*.v_proj', weights: 'int4:g32:sym'}\n"
RECIPES = {
    "rtn4": "weights: int4:g32:sym\nmethods: [rtn]\n",
    "gptq4": "weights: int4:g32:sym\nmethods: [gptq]\n",
    "awq4": "weights: int4:g32:sym\nmethods: [awq, gptq]\n",
    "rtn3": "weights: int3:g32:sym\nmethods: [rtn]\n",
    "gptq3": "weights: int3:g32:sym\nmethods: [gptq]\n",
    "awq3": "weights: int3:g32:sym\nmethods: [awq, {rtn: {search: output}}]\n",
    "rtn2": "weights: int2:g32:sym\nmethods: [rtn]\n",
    "gptq2": "weights: int2:g32:sym\nmethods: [gptq]\n",
    "affine4": "weights: int4:g32:asym\nmethods: [rtn]\n",
    "affine3": "weights: int3:g32:asym\nmethods: [gptq]\n",
    "mixed": "weights: int3:g32:sym\nmethods: [gptq]\n" + _MIXED,
    "mixed-rtn": "weights: int3:g32:sym\nmethods: [rtn]\n" + _MIXED,
    "w4w8": "weights: int4:g32:sym\nmethods: [gptq]\n" + _MIXED.replace("int4", "int8"),
    "w4w8-rtn": "weights: int4:g32:sym\nmethods: [rtn]\n" + _MIXED.replace("int4", "int8"),
    "static": "weights: int8:channel:sym\ninputs: int8:tensor\nmethods: [rtn]\n",
}
WINDOWS = {"dense": (24, 128), "mixtral": (32, 128), "smollm2": (12, 256)}  # calibration
TEXT = {"dense": 150, "mixtral": 150, "smollm2": 240}  # characters of a prompt
TUNING = {"dense": (1e-3, 8), "mixtral": (1e-3, 8), "smollm2": (2e-4, 2)}  # of the fine-tunes: rate, rows a step


@dataclass(frozen=True)
class Base:
    """One full-precision model and the scratch directory of what is made from it."""

    name: str
    scratch: Path
    case: str = ""  # decides the prompts, whatever place and size are tried

    @property
    def directory(self) -> Path:
        """The baseline's checkpoint."""
        return unpacked() if self.name == "smollm2" else MODELS / self.name

    def candidate(self, recipe: str, source: Path | None = None, tag: str = "", text: Path | None = None) -> Path:
        """A healthy checkpoint by a recipe of ours; of `source` instead of the baseline, calibrated on `text`."""
        sequences, length = WINDOWS[self.name]

        def build(directory: Path) -> None:
            content = f"name: {recipe}\n{RECIPES[recipe]}"
            if "methods: [rtn]" not in content or "inputs:" in content:
                calibration = {"source": str(text or "builtin"), "sequences": sequences, "length": length, "seed": 0}
                if text is not None:
                    calibration |= json.loads(text.with_suffix(".spec").read_text(encoding="utf-8"))
                content += f"calibration: {json.dumps(calibration)}\n"
            path = directory.with_suffix(".yaml")
            path.write_text(content, encoding="utf-8")
            options = subeight.Options(out=directory, quiet=True)
            subeight.quantize(str(source or self.directory), str(path), options=options)
            path.unlink()

        return self.made(f"{recipe}{tag}", build)

    def finetuned(self, steps: int, seed: int, rate: float | None = None) -> Path:
        """A short fine-tune of the baseline: another checkpoint of the same model."""
        usual, rows = TUNING[self.name]

        def build(directory: Path) -> None:
            model = transformers.AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.directory)
            finetuned(model, tokenizer, steps, seed, rate or usual, rows)
            dtype = Model(self.directory).stored_dtype
            model.to(dtype).save_pretrained(directory)
            tokenizer.save_pretrained(directory)

        return self.made(f"finetuned-{steps}-{seed}{'-far' if rate else ''}", build)

    def rotated(self, seed: int) -> Path:
        """The baseline with its residual stream rotated (QuaRot's R1): the same function, other weights."""

        def build(directory: Path) -> None:
            rotate(self.directory, directory, seed)

        return self.made(f"rotated-{seed}", build)

    def made(self, name: str, build: Callable[[Path], None]) -> Path:
        """The directory `name`, built by `build` where it is not there yet; safe among several processes."""
        target = self.scratch / self.name / name
        if target.is_dir():
            return target
        draft = target.with_name(f"{name}.{os.getpid()}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        build(draft)
        try:
            draft.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
        return target

    def prompts(self, path: Path, counts: dict[str, int], part: str = "evaluation") -> Path:
        """Writes short prompts of the packaged text, so many of each category."""
        rows, chooser = packaged(part), random.Random(f"{self.case} {path.name}")
        chosen: list[dict[str, Any]] = []
        for category, count in counts.items():
            listed = [row for row in rows if row["category"] == category]
            chosen += [shortened(row, TEXT[self.name]) for row in chooser.sample(listed, count)]
        return write_rows(path, chosen)


def packaged(part: str) -> list[dict[str, Any]]:
    """The rows of the packaged calibration or evaluation text."""
    return [json.loads(line) for line in (BUILTIN / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def shortened(row: dict[str, Any], characters: int) -> dict[str, Any]:
    """A row with only the beginning of its text, or of its first two turns."""
    if "text" in row:
        return {**row, "text": _beginning(row["text"], characters)}
    turns = [m for m in row["messages"] if m["role"] != "system"][:2]
    short = [{**turn, "content": _beginning(turn["content"], characters * 2 // 3)} for turn in turns]
    return {**row, "messages": short}


def _beginning(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: text.rfind(" ", 0, characters)].rstrip()


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


READERS = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
EXPERT_READERS, WRITERS = ("w1", "w3", "gate"), ("o_proj", "down_proj", "w2")


def rotate(source: Path, directory: Path, seed: int) -> None:
    """Writes `source` with norms folded, the head untied, and readers and writers of the residual stream turned."""
    directory.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "complete":
            shutil.copyfile(path, directory / path.name)
    tensors = {name: value.float() for name, value in load_file(source / "model.safetensors").items()}
    width = tensors["model.norm.weight"].shape[0]
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0].float()
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    tensors["lm_head.weight"] = (tensors["lm_head.weight"] * tensors["model.norm.weight"]) @ turn
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] @ turn
    for name in [name for name in tensors if ".layers." in name and tensors[name].dim() == 2]:
        tensors[name] = _turned(name, tensors, turn)
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = torch.ones_like(tensors[name])
    save_file(
        {n: v.contiguous() for n, v in tensors.items()}, directory / "model.safetensors", metadata={"format": "pt"}
    )
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config |= {"tie_word_embeddings": False, "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _turned(name: str, tensors: dict[str, Tensor], turn: Tensor) -> Tensor:
    parts = name.split(".")
    layer, kind = ".".join(parts[:3]), parts[-2]
    if kind in WRITERS:
        return turn.T @ tensors[name]
    norm = "input_layernorm" if kind in READERS["input_layernorm"] else "post_attention_layernorm"
    return (tensors[name] * tensors[f"{layer}.{norm}.weight"]) @ turn
