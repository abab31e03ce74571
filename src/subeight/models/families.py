"""The one table of facts about model families that cannot be observed by running them.

Everything else (the blocks, the linears, which of them read one tensor, which norm wrote it, what can absorb a scale)
is found by watching the model run; see `watch.py` and `folds.py`.
"""

from dataclasses import dataclass

# Linears that vLLM and SGLang run as one kernel and so need one format: the tails of their names.
FUSED_BY_ENGINES: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"gate_proj", "up_proj"}),
)

# Linears that choose experts: tiny, and a wrong choice costs far more than their bytes.
ROUTER_TAILS: frozenset[str] = frozenset({"gate", "router", "shared_expert_gate"})


@dataclass(frozen=True)
class FusedExperts:
    """How a fused 3-D expert parameter [experts, rows, columns] reads: what its rows are, in order."""

    parts: tuple[str, ...]
    stage: int  # 0 reads the block's hidden state, 1 reads what stage 0 computed


# What serving engines call the matrices of an expert, in families whose checkpoints store all experts as one tensor.
# vLLM's loaders of the families themselves: granitemoe.py asks for w1, w3, w2; gpt-oss as llm-compressor writes it
# (pull request 3100) has gate_proj, up_proj, down_proj with their biases, as all others.
_MIXTRAL_TAILS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
EXPERT_TAILS: dict[str, dict[str, str]] = {
    "granitemoe": _MIXTRAL_TAILS,
    "granitemoeshared": _MIXTRAL_TAILS,
    "granitemoehybrid": _MIXTRAL_TAILS,
}

# transformers 5 keeps the experts of a layer in parameters of these names, [experts, out, in].
FUSED_EXPERTS: dict[str, FusedExperts] = {
    "gate_up_proj": FusedExperts(("gate_proj", "up_proj"), 0),
    "up_proj": FusedExperts(("up_proj",), 0),
    "down_proj": FusedExperts(("down_proj",), 1),
}
