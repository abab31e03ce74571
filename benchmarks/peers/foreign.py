"""What the scripts `foreign_*.py` share: their arguments, calibration rows, and how dequantized weights are kept.

Each takes MODEL_DIR OUT_DIR [DENSE.safetensors] (and a method of its own) and writes a small quantized checkpoint of
another tool, to be read and diagnosed by ours; DENSE gets that tool's own dequantized weights.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

ROWS, LENGTH = 16, 64


def arguments(*methods: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("dense", type=Path, nargs="?")
    parser.add_argument("--method", choices=methods, default=methods[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--asym", action="store_true")
    torch.set_num_threads(1)
    return parser.parse_args()


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def rows(path: Path, count: int = ROWS, length: int = LENGTH) -> torch.Tensor:
    """Token ids [count, length] sampled from the model itself, so that no text is needed; always the same."""
    model = load(path)
    torch.manual_seed(0)
    first = torch.full((count, 1), model.config.bos_token_id or 0)
    return model.generate(first, do_sample=True, min_length=length, max_length=length, pad_token_id=0)


def keep_tokenizer(path: Path, out: Path) -> None:
    AutoTokenizer.from_pretrained(path).save_pretrained(out)


def keep_dense(weights: dict[str, torch.Tensor], path: Path | None) -> None:
    """Keeps dequantized weights [out, in] by the names of their linears, where the caller wants them."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in weights.items()}, path)
