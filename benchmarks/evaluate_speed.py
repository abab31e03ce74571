"""How fast KL and perplexity are measured, beside the bare bf16 forward of the same batches (interleaved).

    python benchmarks/evaluate_speed.py [--rounds 5]

Two shapes: smollm2 (vocabulary 85 times the width) and a random Llama of 1.1B whose vocabulary is 15.6 times the width.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from common import spread, write_result
from subeight.evals.passes import Computing, Sequences
from subeight.evals.scoring import ask, score
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked
from subeight.text import EvaluationSet, Sample

WINDOWS, LENGTH = 20, 512


def main() -> None:
    """Both shapes, one result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    numbers = {"smollm2": measure(unpacked(), arguments.rounds)}
    with tempfile.TemporaryDirectory() as scratch:
        narrow = Path(scratch) / "narrow"
        make_narrow(narrow)
        numbers["llama_1.1b"] = measure(narrow, min(3, arguments.rounds))
    write_result("evaluate_speed", numbers, windows=WINDOWS, length=LENGTH, threads=arguments.threads)


def measure(directory: Path, rounds: int) -> dict:
    """Seconds of a bare forward with logits, and of a whole evaluation of a candidate (loading its blocks included)."""
    model = Model(directory)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (WINDOWS, LENGTH), generator=generator)
    scored = (False,) + (True,) * (LENGTH - 1)
    samples = tuple(Sample(tuple(row.tolist()), scored, "text", str(n)) for n, row in enumerate(ids))
    evaluation = EvaluationSet(samples, f"speed-{config.vocab_size}")
    computing = Computing(torch.bfloat16, torch.device("cpu"), quiet=True)
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    batches = Sequences.of(evaluation).batches()
    ratios, bare, full = [], [], []
    with tempfile.TemporaryDirectory() as cache:
        question = ask(model, evaluation, computing, Path(cache))
        for turn in range(rounds + 1):
            began = time.perf_counter()
            with torch.inference_mode():
                for batch in batches:
                    plain(input_ids=batch.ids, use_cache=False).logits  # noqa: B018 - what is timed
            middle = time.perf_counter()
            score(question, model)
            ended = time.perf_counter()
            if turn:  # the first warms up
                bare.append(middle - began)
                full.append(ended - middle)
                ratios.append((middle - began) / (ended - middle))
    return {"share_of_forward_speed": spread(ratios), "forward_seconds": spread(bare), "evaluate_seconds": spread(full)}


def make_narrow(directory: Path) -> None:
    """A random Llama of the shape of TinyLlama 1.1B: width 2048, vocabulary 32,000, 22 blocks."""
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)


if __name__ == "__main__":
    main()
