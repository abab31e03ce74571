"""GGUF files of smollm2 in llama.cpp: its logits against ours of the very same weights, and its token ids.

    python -m benchmarks.gguf_parity --env DIR [--work DIR] [--only q4_0]

DIR is an environment with llama-cpp-python 0.3.36 (`peers/README.md`). Each cell rounds by a recipe, exports to GGUF
and compares with our float32 logits of the quantized checkpoint. llama.cpp rounds the inputs of every product to 8 bits
as well; so the same file is compared once more with all its tensors dequantized to float32 by the gguf package, which
leaves nothing but the order of sums.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from benchmarks.common import HERE, WIKITEXT_TEST, run_json, write_result
from torch import Tensor

from subeight.engine.job import Job, Settings
from subeight.engine.loop import run
from subeight.engine.transcode import stored_plan
from subeight.evals.passes import Computing, run_pass
from subeight.export import exporter_for, require_gguf, write_gguf
from subeight.export.gguf import table
from subeight.export.gguf_read_back import require_same_weights
from subeight.models.footprint import footprint
from subeight.models.model import Model
from subeight.recipes import Plan, parse_recipe, resolve
from subeight.text import Batch

_HEAD = "  - {match: '*embed_tokens', weights: int8:g32:sym:fp16}\n"
RECIPES = {
    "q8_0": "weights: int8:g32:sym:fp16\nmethods: [rtn]\nrules:\n" + _HEAD,
    "q4_0": "weights: int4:g32:sym:fp16\nmethods: [rtn]\nrules:\n" + _HEAD,
    "mixed": (
        "weights: int5:g32:sym:fp16\nmethods: [rtn]\nrules:\n"
        "  - {match: '*.v_proj', weights: int8:g32:sym:fp16}\n"
        "  - {match: '*.k_proj', weights: int4:g32:asym:fp16}\n"
        "  - {match: '*.up_proj', weights: int4:g64:sym:fp16}\n"
        "  - {match: '*.down_proj', weights: int6:channel:sym:fp16}\n"
        "  - {match: '*.2?.mlp.down_proj', weights: int5:g256:asym:fp16}\n"
        "  - {match: '*.1?.mlp.down_proj', weights: int4:g256:asym:fp16}\n"
        "  - {match: '*.1.*', keep: true}\n"
    ),
}
AIM = 0.003
ROWS, LENGTH = 3, 128
TEXTS = (
    "The quick brown fox jumps over 1234567 lazy dogs.  Two  spaces, a\ttab\nand\n\n\nlines.",
    "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWas ist 12,5 % von 80?<|im_end|>\n",
    "def f(x):\n    return {'a': x**2, \"b\": [1,2,3]}  # it's we'll I'D don't\r\n",
    "Grüße aus Köln — naïve café, ½ 💡 日本語 العربية <|endoftext|><|im_end|>",
    " leading space and trailing space ",
)


def main() -> None:
    """Runs the cells and writes one result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", choices=RECIPES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        for name in [given.only] if given.only else RECIPES:
            numbers[name] = cell(name, work / name, given.env / "bin" / "python")
            print(name, json.dumps(numbers[name]), file=sys.stderr)
    if not given.only:
        text = {"rows": ROWS, "length": LENGTH, "source": "wikitext2/test.raw.txt"}
        write_result("gguf_parity", numbers, peer="llama-cpp-python 0.3.36", model="smollm2", text=text, aim_kl=AIM)
    sys.exit(0 if all(row["right"] for row in numbers.values()) else 1)


def cell(name: str, folder: Path, python: Path) -> dict[str, Any]:
    """One recipe: how far llama.cpp is from us, as the file is and with its weights in float32."""
    model, plan = quantized(name, folder)
    file = folder / "model.gguf"
    placed = write_gguf(model, plan.sites, file, quiet=True)
    same_weights = require_same_weights(file, model, placed)
    rows = text_rows(model)
    ours = logits(model, rows)
    theirs, answer = llama(python, file, rows, folder)
    dense, _ = llama(python, dequantized(file, folder / "dense.gguf"), rows, folder)
    (folder / "dense.gguf").unlink()
    tokenizer = model.tokenizer()
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    same = answer["tokens"] == ids
    result = {
        "bits_per_weight": footprint(Model(file)).bits_per_weight,
        "file_bytes": file.stat().st_size,
        "types": table(placed),
        "same_weights": same_weights,
        "tokens": rows.numel(),
        **distance(ours, theirs),
        "dense": distance(ours, dense),
        "same_token_ids": same,
        "same_template": answer["template"] == tokenizer.chat_template,
    }
    return {**result, "right": result["kl"] <= AIM and same and result["same_template"]}


def quantized(name: str, folder: Path) -> tuple[Model, Plan]:
    """smollm2 by this recipe, plainly rounded; what an earlier run left in `--work` is taken as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "quantized"
    if not (target / "config.json").is_file():
        model = Model("smollm2")
        plan = resolve(parse_recipe(f"name: {name}\n{RECIPES[name]}"), model.linears, engine="gguf")
        require_gguf(model, plan.sites)
        run(model, [Job(plan, target, exporter_for("subeight"))], None, Settings(quiet=True))
    model = Model(target)
    return model, stored_plan(model)


def text_rows(model: Model) -> Tensor:
    """Token ids [rows, length] of the test text."""
    text = WIKITEXT_TEST.read_text(encoding="utf-8")[: 8 * ROWS * LENGTH]
    return torch.tensor(model.tokenizer()(text).input_ids[: ROWS * LENGTH]).view(ROWS, LENGTH)


def logits(model: Model, rows: Tensor) -> Tensor:
    """Our float32 logits [rows, length, vocabulary]."""
    scored = torch.ones(rows.shape[0], rows.shape[1] + 1, dtype=torch.bool)
    scored[:, 0] = False
    lengths = torch.full((rows.shape[0],), rows.shape[1] + 1)
    batch = Batch(torch.cat([rows, rows[:, :1]], 1), scored, lengths, tuple(range(len(rows))))
    made = run_pass(model, [batch], Computing(torch.float32, torch.device("cpu"), quiet=True), "")
    return made.head(made.hidden[0]).view(*rows.shape, -1)


def llama(python: Path, file: Path, rows: Tensor, folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """llama.cpp's logits of the rows, and what else it says of the file."""
    request, result = folder / "request.json", folder / "logits.npy"
    request.write_text(json.dumps({"rows": rows.tolist(), "texts": TEXTS}), encoding="utf-8")
    script = HERE / "peers" / "gguf_logits.py"
    answer = run_json([str(python), str(script), str(file), str(request), str(result)])
    found = torch.from_numpy(np.load(result))
    result.unlink()
    return found, answer


def dequantized(file: Path, target: Path) -> Path:
    """The same file with every tensor in float32, by the gguf package alone."""
    reader = gguf.GGUFReader(file)
    kept = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    architecture = kept.pop("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in kept.items():
        of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=of)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def distance(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """KL(ours || theirs) in nats per token, agreement of the likeliest token, and the largest difference of a logit."""
    one, other = ours.double().log_softmax(-1).flatten(0, 1), theirs.double().log_softmax(-1).flatten(0, 1)
    kl = (one.exp() * (one - other)).sum(-1)
    return {
        "kl": float(kl.mean()),
        "kl_p99": float(kl.quantile(0.99)),
        "kl_max": float(kl.max()),
        "top1": float((one.argmax(-1) == other.argmax(-1)).double().mean()),
        "logit_max": float((ours - theirs).abs().max()),
    }


if __name__ == "__main__":
    main()
