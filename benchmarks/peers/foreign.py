"""What the scripts `foreign_*.py` share: their arguments, calibration rows, and how dequantized weights are kept.

Each takes MODEL_DIR OUT_DIR [DENSE.safetensors] (and a method of its own) and writes a small quantized checkpoint of
another tool, to be read and diagnosed by ours; DENSE gets that tool's own dequantized weights. The scripts `bits_*.py`
take MODEL_DIR OUT.json --bits B and write which width another tool gives every linear.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

ROWS, LENGTH = 16, 64
WIDTHS, GROUP = (2, 3, 4, 8), 64  # what the tools that choose bits choose from
PER_WIDTH, PER_WEIGHT = 1 + 1 / GROUP, 16 / GROUP  # stored bits: a zero point as wide as a code, a 16-bit scale


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


def choice_arguments() -> argparse.Namespace:
    """What a script that asks for a choice of bits is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=float, required=True)
    parser.add_argument("--calibration", type=Path)
    torch.set_num_threads(1)
    return parser.parse_args()


def keep_choice(
    given: argparse.Namespace, peer: str, version: str, seconds: float, chosen: dict[str, int], sizes: dict[str, int]
) -> None:
    """Writes the width of every linear, and what they come to with their scales."""
    mean = sum(sizes[name] * width for name, width in chosen.items()) / sum(sizes.values())
    bits = mean * PER_WIDTH + PER_WEIGHT
    report = {"peer": peer, "version": version, "asked_bits": given.bits, "bits_per_weight": bits, "seconds": seconds}
    report["formats"] = {name: f"int{width}" for name, width in chosen.items()}
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
