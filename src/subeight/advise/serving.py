"""How serving engines are told to store keys and values most nearly as a policy does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from subeight.formats import Format
from subeight.kv.policy import SIDES, KVPolicy

# llama.cpp's cache types by code bits: all in groups of 32 along the head's channels
_LLAMA_CPP = {8: "q8_0", 5: "q5_0", 4: "q4_0", 3: "q4_0", 2: "q4_0"}


@dataclass(frozen=True)
class Flags:
    """One engine's flags, and what they do otherwise than the policy."""

    engine: str
    flags: str
    differs: str

    def numbers(self) -> dict[str, str]:
        """For the record."""
        return {"engine": self.engine, "flags": self.flags, "differs": self.differs}


def serving_flags(policy: KVPolicy) -> list[Flags]:
    """The nearest of vLLM, SGLang and llama.cpp, by their documentation; none was run here."""
    return [_vllm(policy), _sglang(policy), _llama_cpp(policy)]


def _vllm(policy: KVPolicy) -> Flags:
    if policy.is_full:
        return Flags("vllm", "--kv-cache-dtype auto", "nothing")
    return Flags(
        "vllm", "--kv-cache-dtype fp8", f"8 bits with a scale per tensor for keys and values, {_beyond(policy)}"
    )


def _sglang(policy: KVPolicy) -> Flags:
    if policy.is_full:
        return Flags("sglang", "--kv-cache-dtype auto", "nothing")
    return Flags("sglang", "--kv-cache-dtype fp8_e5m2", f"8 bits without scales for keys and values, {_beyond(policy)}")


def _llama_cpp(policy: KVPolicy) -> Flags:
    if policy.is_full:
        return Flags("llama.cpp", "-ctk f16 -ctv f16", "nothing")
    used = [_usual(policy, side) for side in SIDES]
    flags = f"-fa on -ctk {_type(used[0])} -ctv {_type(used[1])}"
    fewest = min((format.code_bits for format in used if format is not None), default=16)
    wider = "no fewer than 4 bits, " if fewest < 4 else ""
    return Flags("llama.cpp", flags, f"{wider}groups of 32 along the channels, {_beyond(policy)}")


def _usual(policy: KVPolicy, side: str) -> Format | None:
    """The format of most layers, where single ones are otherwise: an engine has one for all."""
    own: Format | None = getattr(policy, side)
    if own is not None or not policy.layers:
        return own
    return Counter(getattr(one, side) for one in policy.layers.values()).most_common(1)[0][0]


def _type(format: Format | None) -> str:
    return "f16" if format is None else _LLAMA_CPP.get(format.code_bits, "q8_0")


def _beyond(policy: KVPolicy) -> str:
    """What no engine has."""
    own = [f"window of {policy.window}"] if policy.window else []
    own += [f"{policy.sinks} sinks"] if policy.sinks else []
    own += ["rotated basis"] if policy.rotate else []
    own += ["keys before RoPE"] if policy.rope == "before" else []
    own += ["layers of their own"] if policy.layers else []
    return f"without {', '.join(own)}" if own else "every token rounded as here"
