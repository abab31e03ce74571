"""QLoRA against 16-bit LoRA on a task that the base cannot do: accuracy, peak memory, and every way of merging.

The task: an invented code. Sixteen words have each another one for it, drawn by a seed; a row gives three of them and
asks for the code of each. Questions are held out whole. Both trainings see the same rows in the same order for as many
updates, with the same loss; each runs in a process of its own, whose peak resident size at the end of training is
compared, as it is and less what Python and its libraries take before a model is there. A random Llama of 0.8 billion
weights, where the base is more of the whole, is trained for a few updates to compare memory alone.

    python -m benchmarks.qlora               # smollm2 and the random Llama, results/qlora.json
    python -m benchmarks.qlora --steps 4 --no-large --no-write     # a try
    python -m benchmarks.qlora --device cuda   # the memory of a GPU, results/qlora_cuda.json
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import HERE, run_json, write_result
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import subeight
from subeight.evals.passes import Computing
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked
from subeight.records import peak_rss_bytes
from subeight.train.adapters import LoraShape
from subeight.train.qlora import Course, train
from subeight.train.qlora_data import lessons
from subeight.train.qlora_measure import Question, module_pass, seen
from subeight.verbs.train_qlora import Material

WORDS = [
    "river",
    "stone",
    "lamp",
    "chair",
    "cloud",
    "apple",
    "house",
    "bread",
    "horse",
    "glass",
    "paper",
    "tower",
    "wheel",
    "bird",
    "coat",
    "knife",
]
ROWS, HELD_OUT, LENGTH, BATCH, RATE, LARGE_STEPS = 1200, 200, 64, 16, 2e-3, 2
SHAPE = LoraShape(rank=8, alpha=16.0)
RECIPES = {
    "nf4": "name: nf4\nweights: nf4:g64\nmethods: [rtn]\n",
    "nf4, embeddings int8": (
        "name: nf4-embeddings\nweights: nf4:g64\nmethods: [rtn]\n"
        "rules: [{match: model.embed_tokens, weights: 'int8:channel'}]\n"
    ),
}


def write_task(folder: Path, seed: int = 0) -> None:
    """Rows to train on and rows that are held out; no question stands in both."""
    draw = random.Random(seed)
    code = dict(zip(WORDS, draw.sample(WORDS, len(WORDS)), strict=True))
    questions = {tuple(draw.sample(WORDS, 3)) for _ in range(2 * (ROWS + HELD_OUT))}
    listed = draw.sample(sorted(questions), ROWS + HELD_OUT)
    for name, part in (("train", listed[:ROWS]), ("held-out", listed[ROWS:])):
        rows = ({"text": f"Code of {' '.join(q)}:", "completion": " " + " ".join(code[w] for w in q)} for q in part)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_large(directory: Path) -> Path:
    """A random Llama of 0.8 billion weights with smollm2's tokenizer."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (unpacked() / name).is_file():
            shutil.copy(unpacked() / name, directory / name)
    return directory


def course(steps: int) -> Course:
    """The same for both."""
    return Course(steps=steps, batch=BATCH, rate=RATE, save=10**6)


def full_lora(model: Path, folder: Path, steps: int, device: torch.device, *, asks: bool) -> dict[str, Any]:
    """16-bit LoRA as PEFT's users have it, but for the loss, which is ours: logits of scored columns alone."""
    from peft import LoraConfig, get_peft_model

    imports = peak_rss_bytes()
    opened = Model(model)
    data = lessons(
        opened, str(folder / "train.jsonl"), held_out=str(folder / "held-out.jsonl"), share=0.1, length=LENGTH, seed=0
    )
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tails = sorted({view.info.name.rpartition(".")[2] for view in opened.views()})
    config = LoraConfig(r=SHAPE.rank, lora_alpha=int(SHAPE.alpha), target_modules=tails, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(module.to(device), config)
    for value in adapted.parameters():
        value.data = value.data.float() if value.requires_grad else value.data
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": device, "seed": 0, "quiet": True}
    found = train(adapted, data.train, course(steps), folder / "full", {"base": None, "made_of": None}, **options)
    numbers = {"seconds": found.seconds, "peak_bytes": peak_rss_bytes(), "imports_bytes": imports}
    numbers["peak_device_bytes"] = found.device_bytes
    if asks:
        question = Question.of(data)
        apart = module_pass(adapted.get_base_model(), opened, question, Computing(torch.bfloat16, device, True))
        numbers |= seen(apart, apart, question).numbers(has_answers=True, seed=0)
    return numbers


def our_qlora(
    model: Path, folder: Path, steps: int, device: torch.device, recipe: str, *, asks: bool
) -> dict[str, Any]:
    """The verb on the same rows; the peak is that at the end of training, its base made in the same process."""
    imports = peak_rss_bytes()
    source = folder / "recipe.yaml"
    source.write_text(RECIPES[recipe], encoding="utf-8")
    result = subeight.train_qlora(
        str(model),
        str(folder / "train.jsonl"),
        str(source),
        material=Material(str(folder / "held-out.jsonl"), length=LENGTH),
        shape=SHAPE,
        course=course(steps),
        merge="none",
        options=subeight.Options(
            out=folder / f"run-{len(recipe)}",
            quiet=True,
            dtype="bfloat16",
            device=str(device),
            eval_tokens=None if asks else 20,
        ),
    )
    training = result.numbers["training"]
    numbers = {"seconds": training["seconds"], "peak_bytes": training["peak_rss_bytes"], "imports_bytes": imports}
    numbers["peak_device_bytes"] = training.get("peak_device_bytes")
    if asks:
        kept = ("merges", "untrained", "metric", "gain", "best", "findings")
        numbers |= {name: result.numbers[name] for name in kept}
        numbers["manifest"] = result.numbers["manifest"]["totals"]
    return numbers


def in_processes(
    model: Path, folder: Path, steps: int, threads: int, device: str, recipes: list[str], *, asks: bool
) -> dict[str, Any]:
    """Both trainings, each in a process of its own, and their memory as ratios."""
    found: dict[str, Any] = {}
    for name in ("full", *recipes):
        command = [
            sys.executable,
            "-m",
            "benchmarks.qlora",
            "--child",
            name,
            "--model",
            str(model),
            "--folder",
            str(folder),
        ]
        command += ["--steps", str(steps), "--threads", str(threads), "--device", device]
        command += [] if asks else ["--no-questions"]
        found[name] = run_json(command, cwd=HERE.parent)
    whole = found["full"]
    for name in recipes:
        mine = found[name]
        beyond = mine["peak_bytes"] - mine["imports_bytes"], whole["peak_bytes"] - whole["imports_bytes"]
        mine["peak_ratio"] = mine["peak_bytes"] / whole["peak_bytes"]
        mine["peak_ratio_beyond_imports"] = beyond[0] / beyond[1]
        if whole["peak_device_bytes"]:
            mine["peak_ratio_device"] = mine["peak_device_bytes"] / whole["peak_device_bytes"]
    return found


def main() -> None:
    """The parent starts a child for each training and writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--subject", type=Path, help="another model than smollm2")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--questions", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--child")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(arguments.threads)
        given = arguments.model, arguments.folder, arguments.steps, torch.device(arguments.device)
        child = full_lora if arguments.child == "full" else our_qlora
        more = () if arguments.child == "full" else (arguments.child,)
        print(json.dumps(child(*given, *more, asks=arguments.questions)))
        return
    numbers = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_task(folder)
        subject = arguments.subject or unpacked()
        label = "smollm2" if arguments.subject is None else subject.name
        how = arguments.threads, arguments.device, arguments.recipes
        numbers[label] = in_processes(subject, folder, arguments.steps, *how, asks=True)
        if arguments.large:
            (folder / "large").mkdir()
            write_task(folder / "large")
            model = write_large(folder / "large" / "model")
            numbers["random 0.8B"] = in_processes(model, folder / "large", LARGE_STEPS, *how, asks=False)
    if arguments.write:
        name = "qlora" if arguments.device == "cpu" else f"qlora_{arguments.device}"
        write_result(name, numbers, steps=arguments.steps, batch=BATCH, rate=RATE, rank=SHAPE.rank, rows=ROWS)
    else:
        print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
