"""What training through the rounding adds to our best post-training result at the same bits, and what it takes.

    python -m benchmarks.qat --work DIR [--only 'W2*'] [--tokens 350000] [--threads 2]
    python -m benchmarks.qat --work DIR --device cuda --data TEXT --tokens 20000000 --batch 16 --rate 0.004

smollm2 by `best-int2` and `best-int3` on 128 x 512 tokens of wikitext-2's training text, then `train qat` on windows of
all of it (or of `--data`). KL on the first 10,240 tokens of the test text, window 1024, paired by window. `culprits` is
a model of mixed widths (gate and up at 2 bits, the rest at 4) of which the linears of at most 3 bits alone are trained,
beside all. Every row is kept under DIR; a second call goes on.
"""

import argparse
import fnmatch
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import WIKITEXT_TEST, WIKITEXT_TRAIN, write_result

from subeight.recipes import load_recipe
from subeight.records import Record
from subeight.verbs.learning import Asked
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from subeight.verbs.train_qat import train_qat

CELLS = {  # a recipe, what is trained, the share of the tokens, whether blocks come first
    "W2": ("best-int2", "all", 1.0, False),
    "W2 blocks first": ("best-int2", "all", 0.375, True),
    "W3": ("best-int3", "all", 1.0, False),
    "mixed all": ("mixed", "all", 1.0, False),
    "mixed culprits": ("mixed", "culprits", 0.3, False),
}
MIXED = """
name: mixed
weights: int4:g64:sym
methods: [awq, {signround: {steps: 40}}, {distil: {epochs: 2}}]
rules:
  - {match: "*.mlp.up_proj", weights: int2:g64:sym}
  - {match: "*.mlp.gate_proj", weights: int2:g64:sym}
calibration: {source: TRAIN, sequences: 128, length: 512, seed: 0}
"""


def main() -> None:
    """Runs what is missing and writes `results/qat.json`, of a GPU `results/qat_cuda.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qat")
    parser.add_argument("--only", default="*")
    parser.add_argument("--tokens", type=int, default=350_000, help="of a whole training; others get their share")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=WIKITEXT_TRAIN)
    parser.add_argument("--batch", type=int, default=Asked.batch)
    parser.add_argument("--rate", type=float, default=Asked.rate)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = {name: _row(name, given) for name in CELLS if fnmatch.fnmatch(name, given.only)}
    numbers = {"rows": rows, "tokens": given.tokens, "threads": given.threads, "device": given.device}
    about = {"model": "smollm2", "training": given.data.name, "evaluation": "wikitext-2 test, 10,240 tokens"}
    write_result("qat" if given.device == "cpu" else f"qat_{given.device}", numbers, **about)


def _row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The start, quantized once for each recipe, and the training."""
    out = given.work / name.replace(" ", "-")
    row = out.with_suffix(".json")
    if row.is_file():
        return json.loads(row.read_text(encoding="utf-8"))
    recipe, only, share, blocks = CELLS[name]
    text = (str(WIKITEXT_TEST),)
    options = Options(
        evals=text, eval_tokens=10240, eval_window=1024, threads=given.threads, device=given.device, out=out
    )
    begun = given.work / f"start-{recipe}"
    learned = {"batch": given.batch, "rate": given.rate, "blockwise": blocks}
    asked = Asked(only=only, tokens=int(share * given.tokens), **learned)
    if not (begun / "record.json").is_file():
        quantize("smollm2", _recipe(recipe, given.work), options=replace(options, out=begun))
    found = train_qat("smollm2", recipe, data=str(given.data), start=str(begun), asked=asked, options=options)
    kept = ("kl_start", "kl_start_ci", "kl", "kl_ci", "gain", "gain_ci", "bits_per_weight", "parity")
    turned = found.numbers["training"].pop("turned")
    training = found.numbers["training"] | {"turned": sum(turned.values()) / len(turned)}
    content = {key: found.numbers[key] for key in kept} | {"training": training} | learned
    content |= {"data": given.data.name, "stack": found.record.stack, "seconds_of_start": Record.read(begun).seconds}
    row.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _recipe(name: str, work: Path) -> str:
    """A recipe file that reads wikitext-2's training text."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.yaml"
    if name == "mixed":
        path.write_text(MIXED.replace("TRAIN", str(WIKITEXT_TRAIN)))
        return str(path)
    recipe = load_recipe(name)
    changed = recipe.calibration.model_copy(update={"source": str(WIKITEXT_TRAIN), "sequences": 128})
    path.write_text(recipe.model_copy(update={"calibration": changed}).to_yaml())
    return str(path)


if __name__ == "__main__":
    main()
