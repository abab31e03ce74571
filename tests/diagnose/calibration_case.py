"""A tiny Llama that reads two languages in different directions of its stream, quantized on text of one or of both."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from subeight import Options, quantize
from subeight.diagnose.case import Case, Settings
from subeight.evals.passes import Computing
from subeight.evals.scoring import ask
from subeight.export import Parity
from subeight.models.model import Model
from subeight.text import evaluate_set
from subeight.verbs import parity
from tests.verbs import small

PLAIN = Computing(torch.float32, torch.device("cpu"), quiet=True)
WORDS = {"code": "the cat sat on a mat and", "german": "кот и пёс бежали по дороге"}


def rows(category: str, documents: int, words: int = 20, seed: int = 0) -> list[dict]:
    """Documents of one language, drawn word by word."""
    listed = WORDS[category].split()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(documents):
        chosen = torch.randint(len(listed), (words,), generator=generator).tolist()
        text = " ".join(listed[index] for index in chosen)
        found.append({"id": f"{category}-{seed}-{number}", "text": text, "category": category})
    return found


def save_mixture(folder: Path) -> Path:
    """A Mixtral whose expert 2 of the first block reads German alone."""
    made = small.tokenizer()
    config = transformers.MixtralConfig(**small.SIZES, num_local_experts=4, num_experts_per_tok=2)
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).float().eval()
    german, code = (set(made(WORDS[name])["input_ids"]) for name in ("german", "code"))
    first = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 11] = -1
        model.model.embed_tokens.weight[list(german - code), 11] = 1.0
        first.self_attn.o_proj.weight[11] = 0
        first.mlp.gate.weight[2] = 0
        first.mlp.gate.weight[2, 11] = 3.0
    model.save_pretrained(folder / "mixture")
    made.save_pretrained(folder / "mixture")
    return folder / "mixture"


def save_base(folder: Path) -> Path:
    """The baseline."""
    return small.save_llama(folder / "base", max_position_embeddings=256)


def copied(checkpoint: Path, target: Path) -> Path:
    """A checkpoint that may be damaged."""
    shutil.copytree(checkpoint, target)
    return target


def scale(checkpoint: Path, linears: Sequence[str], factor: float, what: str) -> None:
    """Multiplies stored scales of some linears: `weight_scale` or `input_scale`."""
    names = {f"{name}.{what}" for name in linears}
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        if names & set(tensors):
            changed = {name: value * factor if name in names else value for name, value in tensors.items()}
            save_file(changed, path, metadata={"format": "pt"})


def quantized(folder: Path, name: str, recipe: str, text: list[dict], base: Path, seed: int = 0) -> Path:
    """A checkpoint of the baseline by a recipe (`TEXT` stands for the calibration's file)."""
    source = small.write_rows(folder / f"{name}-text.jsonl", text)
    given = small.write_recipe(folder / f"{name}.yaml", recipe, source)
    options = Options(threads=1, quiet=True, dtype="float32", out=folder / name, seed=seed)
    checked = parity.check
    parity.check = lambda *_args, **_options: Parity(0.0, 1.0, 0, 0)  # type: ignore[assignment]  # a process for each
    try:
        quantize(str(base), str(given), options=options)
    finally:
        parity.check = checked
    return folder / name


def case_of(
    folder: Path, candidate: Path, base: Path, prompts: list[dict], control: Sequence[dict] = (), **settings: object
) -> Case:
    """The case of the candidate on the prompts."""
    baseline, broken = Model(base), Model(candidate)
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)

    def asked(listed: list[dict], name: str):
        evaluation = evaluate_set([small.write_rows(folder / f"{name}.jsonl", listed)], baseline.tokenizer(), window=64)
        return ask(baseline, evaluation, PLAIN, cache)

    question = asked(prompts, "prompts")
    case = Case(
        broken, baseline, ["prompts"], question.evaluation, question, PLAIN, cache, Settings(**settings),
        whole=None, loss=None, control=asked(list(control), "control") if control else None,
    )  # type: ignore[arg-type]  # fmt: skip
    loss = case.measure(broken)
    return case.with_repair(loss, whole=loss)
