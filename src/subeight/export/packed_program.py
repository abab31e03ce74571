"""The other process of `packed.py`: plain transformers, which loads a checkpoint as it is stored and runs it.

It is run as text (`python -c`), so that neither Subeight nor this folder is on its way. A line of JSON on standard
input is a request, a line on standard output its answer; tensors go through files.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
Request = dict[str, Any]


class Server:
    """One model at a time, and what it computes."""

    model: Any = None
    device = "cpu"

    def load(self, request: Request) -> Request:
        """Loads a checkpoint in float32; says which tensors did not fit."""
        self.model = None
        if request["own"]:
            import_module("subeight")  # plain transformers refuses its method by name
        torch.set_num_threads(request["threads"])
        self.device = request["device"]
        options = {"gguf_file": request["gguf"]} if request["gguf"] else {}
        model, report = AutoModelForCausalLM.from_pretrained(
            request["directory"],
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=request["trust"],
            output_loading_info=True,
            **options,
        )
        self.model = model.eval().to(self.device)
        for parameter in self.model.parameters():  # packed experts stay in the scales' type, whatever was asked for
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        return {kind: sorted(map(str, report.get(kind) or ())) for kind in KEYS}

    def logits(self, request: Request) -> Request:
        """The logits [positions, vocabulary] in float32 of each row of ids, at the positions that are wanted."""
        given = load_file(request["given"])
        rows = sorted(name for name in given if name.startswith("ids"))
        made = {}
        with torch.inference_mode():
            for name in rows:
                at = given[name.replace("ids", "at")].to(self.device)
                found = self.model(input_ids=given[name][None].to(self.device), use_cache=False).logits[0, at]
                made[name.replace("ids", "logits")] = found.float().contiguous().cpu()
        save_file(made, request["result"])
        return {}

    def products(self, request: Request) -> Request:
        """Input [tokens, in] and output [tokens, out] of the named modules for one row of ids, and those of blocks."""
        kept: dict[str, Tensor] = {}
        hooks = []
        known = dict(self.model.named_modules())
        for name in request["modules"]:
            module = known.get(name)
            if module is None:
                continue
            hooks.append(module.register_forward_pre_hook(partial(_keep_input, kept, name), with_kwargs=True))
            hooks.append(module.register_forward_hook(partial(_keep_output, kept, name)))
        ids = load_file(request["given"])["ids000000"]
        with torch.inference_mode():
            self.model(input_ids=ids[None].to(self.device), use_cache=False)
        for hook in hooks:
            hook.remove()
        save_file(kept, request["result"])
        return {}

    def weights(self, request: Request) -> Request:
        """The named parameters as the model holds them; those that it does not hold as floats are left out."""
        found = {}
        known = dict(self.model.named_modules())
        for name in request["names"]:
            owner, _, tail = name.rpartition(".")
            value = getattr(known.get(owner), tail, None)
            if isinstance(value, Tensor) and value.is_floating_point() and value.device.type != "meta":
                found[name] = value.detach().float().contiguous().cpu().clone()
        save_file(found, request["result"])
        return {}

    def release(self, _request: Request) -> Request:
        """Forgets the model."""
        self.model = None
        return {"subeight": any(name.split(".")[0] == "subeight" for name in sys.modules)}


def _keep_input(
    kept: dict[str, Tensor], name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    value = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
    if isinstance(value, Tensor):
        kept.setdefault(f"{name}/in", _copy(value))


def _keep_output(kept: dict[str, Tensor], name: str, _module: nn.Module, _args: Any, output: Any) -> None:
    value = output[0] if isinstance(output, tuple) else output
    if isinstance(value, Tensor):
        kept.setdefault(f"{name}/out", _copy(value))


def _copy(value: Tensor) -> Tensor:
    return value.detach().float().reshape(-1, value.shape[-1]).contiguous().cpu().clone()


def serve() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        work: Callable[[Request], Request] = getattr(server, request["do"])
        try:
            answer = work(request)
        except Exception as error:  # whatever a foreign kernel or quantizer raises is an answer
            first = (str(error).strip() or "no message").split("\n")[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
