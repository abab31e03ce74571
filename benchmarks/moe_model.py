"""Trains a small Qwen3-MoE whose routing has specialised, from text that every machine has.

    python -m benchmarks.moe_model OUT [--threads 1] [--steps 400]

Four blocks of sixteen experts, two of them at a time, 3 million parameters. It learns from the packaged calibration
text (English, German, code, chat) and from Python's own library: its sources, and the text of its language reference.
The balance of the experts is asked for so little that they specialise. The packaged evaluation text is never trained
on. The weights are not kept in git.
"""

import argparse
import json
import random
import sysconfig
import time
from pathlib import Path

import torch
import transformers
from benchmarks.faults.train import (
    COMMON,
    bits_per_byte,
    builtin,
    conversation,
    encode,
    make_tokenizer,
    pieces,
    train,
    windows,
)

ROWS, STEPS, RATE = 16, 400, 6e-3
SOURCES = 40  # modules of the library, in alphabetical order of their names
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


def main() -> None:
    """Trains the model into a directory and writes what it learned beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(make(arguments.out, arguments.steps)))


def make(directory: Path, steps: int = STEPS) -> dict[str, object]:
    """Trains, saves in bfloat16 with its tokenizer, and tells the bits per byte of the evaluation text."""
    documents = corpus()
    tokenizer = make_tokenizer(documents)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(), dtype=torch.float32)
    ids = {category: [encode(text, tokenizer) for text in texts] for category, texts in documents.items()}
    began = time.perf_counter()
    train(model, windows(ids, 0, ROWS), steps, RATE)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    learned = {
        "bits_per_byte": bits_per_byte(model.float(), tokenizer),
        "steps": steps,
        "seconds": round(time.perf_counter() - began),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    (directory / "training.json").write_text(json.dumps(learned, indent=1) + "\n", encoding="utf-8")
    return learned


def config() -> transformers.Qwen3MoeConfig:
    """The shape of the model."""
    return transformers.Qwen3MoeConfig(
        **COMMON,
        **EXPERTS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        head_dim=32,
        norm_topk_prob=True,
        router_aux_loss_coef=0.002,
        output_router_logits=False,
    )


def corpus() -> dict[str, list[str]]:
    """Documents of each category: the packaged calibration text, and Python's sources and language reference."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = builtin("calibration")
    for path in sorted(library.glob("[a-z]*.py"))[:SOURCES]:
        found["code"] += pieces(path.read_text(encoding="utf-8"), 6000)
    topics: dict[str, object] = {}
    exec((library / "pydoc_data" / "topics.py").read_text(encoding="utf-8"), topics)  # it is one literal
    reference = topics["topics"]
    assert isinstance(reference, dict)
    chooser = random.Random(0)
    for text in reference.values():
        found["prose"] += pieces(text, 6000)
    for category in ("prose", "code"):
        found["chat"] += [conversation(piece, category, chooser) for piece in pieces("\n".join(found[category]), 900)]
    for text in builtin("calibration")["german"]:
        found["chat"] += [conversation(piece, "german", chooser) for piece in pieces(text, 300)]
    return found


if __name__ == "__main__":
    main()
