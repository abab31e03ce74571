"""What the scripts `contest_*.py` share: their arguments, and how a rounded model is handed back.

Each takes MODEL_DIR IDS.pt OUT_DIR and a width, rounds all linears of the blocks by another tool on those token ids
[rows, length], and writes what they are worth, dequantized, as a plain checkpoint, with `peer.json` beside it. Seconds
count from the loaded library to rounded weights in memory: loading the model in, saving it out.
"""

import argparse
import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def arguments(*methods: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=methods, default=methods[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--inputs", type=int, default=16, help="bits of the inputs, per token; 16 leaves them")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.ids = torch.load(given.ids)
    given.began = time.perf_counter()
    return given


def load(given: argparse.Namespace, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype)


def rows(given: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The token ids as most tools want them."""
    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in given.ids]


def keep(given: argparse.Namespace, weights: Mapping[str, torch.Tensor], seconds: float, **about: Any) -> None:
    """Writes the plain checkpoint: `weights` by parameter name, whatever else as the model has it."""
    plain = load(given)
    with torch.no_grad():
        for name, value in weights.items():
            plain.get_parameter(name).copy_(value.float())
    plain.save_pretrained(given.out)
    AutoConfig.from_pretrained(given.model).save_pretrained(given.out)
    AutoTokenizer.from_pretrained(given.model).save_pretrained(given.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    content = {"method": given.method, "seconds": seconds, "peak_rss_bytes": peak, "threads": given.threads, **about}
    (given.out / "peer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def of_blocks(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters inside the blocks, and the last norm, which some tools change too."""
    return {name: value for name, value in model.named_parameters() if ".layers." in name or "norm" in name}
