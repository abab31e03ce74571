"""Quantizing a random-weight Llama of about 3 GB under --max-memory 2GB, and whether the peak grows with the blocks.

    python benchmarks/memory.py [--blocks 16 32]

Peak RSS is the process's own high-water mark less what it holds after its imports.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from common import run_json, write_result

CHILD = """
import json, sys, time, torch
import subeight
from subeight.records import peak_rss_bytes
import psutil
before = psutil.Process().memory_info().rss
began = time.monotonic()
from pathlib import Path
directory, out, limit, ids = sys.argv[1:]
from subeight.engine.job import Job, Settings
from subeight.engine.loop import run
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.recipes import load_recipe, resolve
model = Model(directory)
plan = resolve(load_recipe("gptq-int4"), model.linears)
settings = Settings(dtype=compute_dtype("auto", torch.device("cpu")), max_memory=int(limit) // 3, quiet=True)
run(model, [Job(plan, Path(out), exporter_for("compressed-tensors"))], torch.load(ids), settings)
found = {"peak_bytes": peak_rss_bytes() - before, "imports_bytes": before, "seconds": time.monotonic() - began}
print(json.dumps(found))
"""
LIMIT = 2_000_000_000


def main() -> None:
    """One model for each number of blocks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, nargs="+", default=[28, 56])
    parser.add_argument("--sequences", type=int, default=32)
    arguments = parser.parse_args()
    rows = []
    for blocks in arguments.blocks:
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch)
            size = make_llama(work / "model", blocks)
            ids = torch.randint(0, 32000, (arguments.sequences, 512), generator=torch.Generator().manual_seed(0))
            torch.save(ids, work / "ids.pt")
            command = [
                sys.executable,
                "-c",
                CHILD,
                str(work / "model"),
                str(work / "out"),
                str(LIMIT),
                str(work / "ids.pt"),
            ]
            found = run_json(command, stderr=subprocess.DEVNULL)
            rows.append({"blocks": blocks, "model_bytes": size, **found, "of_limit": found["peak_bytes"] / LIMIT})
    growth = rows[-1]["peak_bytes"] / rows[0]["peak_bytes"]
    write_result("memory", {"rows": rows, "limit_bytes": LIMIT, "growth": growth}, recipe="gptq-int4", width=2048)


def make_llama(directory: Path, blocks: int) -> int:
    """A random Llama of width 2048 in bf16, one shard a block; returns its bytes."""
    directory.mkdir()
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=blocks, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(directory)
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)

    total = 0
    for index in range(blocks):
        prefix = f"model.layers.{index}"
        tensors = {
            f"{prefix}.self_attn.q_proj.weight": random(2048, 2048),
            f"{prefix}.self_attn.k_proj.weight": random(512, 2048),
            f"{prefix}.self_attn.v_proj.weight": random(512, 2048),
            f"{prefix}.self_attn.o_proj.weight": random(2048, 2048),
            f"{prefix}.mlp.gate_proj.weight": random(5632, 2048),
            f"{prefix}.mlp.up_proj.weight": random(5632, 2048),
            f"{prefix}.mlp.down_proj.weight": random(2048, 5632),
            f"{prefix}.input_layernorm.weight": torch.ones(2048, dtype=torch.bfloat16),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(2048, dtype=torch.bfloat16),
        }
        save_file(tensors, directory / f"block-{index:03d}.safetensors")
        total += sum(value.nbytes for value in tensors.values())
    outside = {
        "model.embed_tokens.weight": random(32000, 2048),
        "lm_head.weight": random(32000, 2048),
        "model.norm.weight": torch.ones(2048, dtype=torch.bfloat16),
    }
    save_file(outside, directory / "outside.safetensors")
    return total + sum(value.nbytes for value in outside.values())


if __name__ == "__main__":
    main()
