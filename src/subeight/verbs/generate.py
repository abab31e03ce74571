"""`generate`: an answer by a checkpoint that runs on its codes."""

import json
import time
from collections import Counter
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from subeight.errors import InputError
from subeight.evals.passes import context_length
from subeight.kernels.frames import with_room
from subeight.kv.cache import KVCache
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model
from subeight.models.packed import Packed, load_packed
from subeight.records import Coordinates
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session

SMALL_STEPS = {"cpp.threads": 1}  # what is compiled of one token is too small to be shared; products keep their threads


def generate(
    model: str,
    prompt: str,
    *,
    tokens: int = 128,
    temperature: float = 0.0,
    raw: bool = False,
    compiled: bool = False,
    kv: str | None = None,
    options: Options | None = None,
) -> Result:
    """Answers a prompt through transformers' `generate`, on packed weights where a kernel serves them.

    Greedy unless `temperature` is above 0. The prompt is a user's turn where the model has a chat template; `raw`
    takes it as it is. `compiled` runs through `torch.compile` with a static cache. `kv` is the policy of its keys and
    values; left out, it is the one of the recipe that the checkpoint was made by.

    Raises:
        InputError: the prompt is empty, prompt and answer do not fit into the model's context, or the policy does not
            fit the model, or a static cache.
    """
    options = options or Options()
    session = Session("generate", options)
    opened = session.model(model)
    tokenizer = opened.tokenizer()
    ids = _encoded(tokenizer, prompt, raw=raw).to(session.device)
    _require_room(opened, ids.shape[1], tokens)
    policy = policy_of(opened, kv)
    if compiled and not policy.is_full:
        raise InputError(
            f"--compile keeps keys and values in a static cache, which cannot hold {policy}; give --kv none."
        )
    packed = load_packed(opened, session.dtype, session.device)
    torch.manual_seed(options.seed)
    clock = _Clock()
    choices: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": tokens, "streamer": clock}
    choices |= {"temperature": temperature} if temperature > 0 else {"temperature": None, "top_p": None, "top_k": None}
    choices |= _compiling() if compiled else {}
    choices |= {} if policy.is_full else {"past_key_values": KVCache(packed.module, policy)}
    if packed.module.generation_config.pad_token_id is None:
        choices["pad_token_id"] = tokenizer.eos_token_id
    clock.start()
    answered = with_room(lambda: packed.module.generate(ids, attention_mask=torch.ones_like(ids), **choices))
    found = answered[0, ids.shape[1] :]
    text = tokenizer.decode(found, skip_special_tokens=True)
    numbers = {"text": text, "prompt_tokens": ids.shape[1], "new_tokens": len(found), **clock.numbers(), **held(packed)}
    numbers["kv"] = str(policy)
    coordinates = Coordinates(baseline=opened.coordinate, stack=session.stack.hash)
    record = session.record(coordinates, numbers, subject={"model": opened.label}, warnings=packed.warnings)
    return Result(record, lines=(_sentence(numbers),))


def policy_of(model: Model, asked: str | None) -> KVPolicy:
    """The KV policy asked for, else that of the plan that lies beside the checkpoint, else none.

    Raises:
        RecipeError: it cannot be read, or names layers that the model does not have.
    """
    plan = model.directory / "plan.json"
    if asked is None and plan.is_file():
        asked = json.loads(plan.read_text(encoding="utf-8")).get("kv")
    policy = KVPolicy.parse(asked or "none")
    policy.require_layers(len(model.skeleton.blocks))
    return policy


def held(packed: Packed) -> dict[str, Any]:
    """What a record says of a loaded model: bytes, kernels of one row, and what stayed dense and why."""
    kernels = Counter(linear.runner.kernel(1) for linear in packed.linears.values())
    return {"weight_bytes": packed.nbytes, "kernels": dict(kernels), "dense": dict(packed.dense)}


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: str, *, raw: bool) -> torch.Tensor:
    """The prompt's ids [1, length]."""
    if not prompt.strip():
        raise InputError("The prompt is empty; give the text that is to be answered.")
    if raw or not tokenizer.chat_template:
        return torch.tensor([tokenizer(prompt)["input_ids"]])
    turn = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
    return torch.tensor([encoded["input_ids"]])


def _compiling() -> dict[str, Any]:
    """What has transformers compile every step after the prompt, on CPUs too."""
    config = CompileConfig(fullgraph=False, mode=None, options=SMALL_STEPS)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def _require_room(model: Model, prompt: int, tokens: int) -> None:
    longest = context_length(model)
    if prompt + tokens > longest:
        raise InputError(
            f"The prompt has {prompt} tokens and {tokens} more are asked for, but {model.label} knows {longest}; "
            "shorten the prompt or give a smaller --tokens."
        )


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """When each token came."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def start(self) -> None:
        self._times = [time.perf_counter()]

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 - only the time counts
        self._times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def numbers(self) -> dict[str, float | None]:
        """The first call of `put` gives the prompt back, the second the first new token.

        The rate is that of the median step, so that compiling, which the longest one shows, is not in it.
        """
        _, given, *came = self._times
        if not came:
            return {"prefill_seconds": None, "decode_tokens_per_second": None, "longest_step_seconds": None}
        steps = [later - earlier for earlier, later in pairwise(came)]
        rate = 1 / median(steps) if steps else None
        longest = max(steps, default=None)
        return {"prefill_seconds": came[0] - given, "decode_tokens_per_second": rate, "longest_step_seconds": longest}


def _sentence(numbers: dict[str, Any]) -> str:
    rate = numbers["decode_tokens_per_second"]
    speed = "" if rate is None else f", {rate:.1f} a second"
    kernels = ", ".join(f"{count} linears by {name}" for name, count in numbers["kernels"].items()) or "plain weights"
    return f"{numbers['new_tokens']} tokens{speed}; {numbers['weight_bytes'] / 1e6:.0f} MB of weights, {kernels}."
