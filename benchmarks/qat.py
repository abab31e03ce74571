"""What training through the rounding adds to our best post-training result at the same bits, and what it takes.

    python -m benchmarks.qat --work DIR [--only 'W2*'] [--tokens 350000] [--threads 2]

smollm2 by `best-int2` and `best-int3` on 128 x 512 tokens of wikitext-2's training text, then `train qat` on windows of
all of it. KL on the first 10,240 tokens of the test text, window 1024, paired by window. `culprits` is a model of mixed
widths (gate and up at 2 bits, the rest at 4) of which just the linears of at most 3 bits are trained, beside all.
Everything is kept under DIR; a second call goes on.
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

CELLS = {
    "W2": ("best-int2", "all", 1.0),
    "W3": ("best-int3", "all", 1.0),
    "mixed all": ("mixed", "all", 1.0),
    "mixed culprits": ("mixed", "culprits", 0.3),
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
    """Runs what is missing and writes `results/qat.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qat")
    parser.add_argument("--only", default="*")
    parser.add_argument("--tokens", type=int, default=350_000, help="of a whole training; others get their share")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = {name: _row(name, given) for name in CELLS if fnmatch.fnmatch(name, given.only)}
    numbers = {"rows": rows, "tokens": given.tokens, "threads": given.threads}
    write_result(
        "qat", numbers, model="smollm2", calibration="wikitext-2 train", evaluation="wikitext-2 test, 10,240 tokens"
    )
    print(json.dumps(rows, indent=1))


def _row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The start, quantized once for each recipe, and the training."""
    recipe, only, share = CELLS[name]
    text = (str(WIKITEXT_TEST),)
    options = Options(evals=text, eval_tokens=10240, eval_window=1024, threads=given.threads)
    begun = given.work / f"start-{recipe}"
    asked = Asked(only=only, tokens=int(share * given.tokens))
    out = given.work / name.replace(" ", "-")
    kept_start = Record.read(begun) if (begun / "record.json").is_file() else None
    start = kept_start or quantize("smollm2", _recipe(recipe, given.work), options=_at(options, begun)).record
    found = train_qat(
        "smollm2", recipe, data=str(WIKITEXT_TRAIN), start=str(begun), asked=asked, options=_at(options, out)
    )
    kept = ("kl_start", "kl_start_ci", "kl", "kl_ci", "gain", "gain_ci", "bits_per_weight")
    training = {key: found.numbers["training"][key] for key in ("steps", "seconds", "predicted", "curve")}
    return {key: found.numbers[key] for key in kept} | training | {"seconds_of_start": start.seconds}


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


def _at(options: Options, out: Path) -> Options:
    return replace(options, out=out)


if __name__ == "__main__":
    main()
