"""The matrices inside the fused 3-D parameters of transformers 5: where each expert's gate, up and down weight lies.

Checkpoints store such a parameter as one matrix for each of them (Mixtral, Qwen-MoE), or whole (gpt-oss, Granite). Of
a whole one, the matrices get the names under which serving engines load them one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from subeight.models.families import EXPERT_TAILS, FUSED_EXPERTS


@dataclass(frozen=True)
class Part:
    """One expert's matrix [out, in] inside a fused parameter: of what [expert] holds, every `step`-th of these rows."""

    expert: int
    name: str
    rows: tuple[int, int]
    step: int
    transposed: bool

    def of(self, parameter: Tensor) -> Tensor:
        """The matrix as a view of the parameter."""
        value = parameter[self.expert]
        return (value.T if self.transposed else value)[self.rows[0] : self.rows[1] : self.step]

    def of_bias(self, bias: Tensor) -> Tensor:
        """Its part of a bias [experts, out]."""
        return bias[self.expert, self.rows[0] : self.rows[1] : self.step]


def parts_of(module: nn.Module, name: str, key: str, tails: Mapping[str, str]) -> list[Part]:
    """The matrices of parameter `key` of the module `name`, expert by expert; none where it holds no experts.

    Whether gate and up lie side by side or row by row in turn, and [out, in] or [in, out], is what the module says.
    """
    parameter, facts = getattr(module, key, None), FUSED_EXPERTS.get(key)
    if facts is None or not isinstance(parameter, Tensor) or parameter.dim() != 3:
        return []
    transposed = bool(getattr(module, "is_transposed", False))
    height, count = parameter.shape[2 if transposed else 1], len(facts.parts)
    size = height // count
    found = []
    for expert in range(parameter.shape[0]):
        for at, part in enumerate(facts.parts):
            together = count == 1 or bool(getattr(module, "is_concatenated", True))
            rows, step = ((at * size, (at + 1) * size), 1) if together else ((at, height), count)
            found.append(Part(expert, f"{name}.{expert}.{tails.get(part, part)}", rows, step, transposed))
    return found


def tails_of(model_type: str) -> Mapping[str, str]:
    """How a family calls the three matrices of an expert, where not gate_proj, up_proj and down_proj."""
    return EXPERT_TAILS.get(model_type, {})


def whole_parts(model: nn.Module, model_type: str) -> dict[str, list[Part]]:
    """The matrices of every fused parameter of a model, by the parameter's full name."""
    tails = tails_of(model_type)
    return {
        f"{name}.{key}": parts
        for name, module in model.named_modules()
        for key in FUSED_EXPERTS
        if (parts := parts_of(module, name, key, tails))
    }
