"""Our KV policies and transformers' QuantizedCache (hqq, quanto) on smollm2: KL, bits, bytes, and hidden numbers.

    python -m benchmarks.kv_policies --envs DIR [--work DIR] [--only 'ours/int2*'] [--contexts 1024,4096] [--list]

DIR/kv is made by `peers/make_env.sh DIR/kv transformers==5.23.0 hqq optimum-quanto`. Windows are the first ones of the
wikitext-2 test text; the reference is the same model with full keys and values, all in float32. Two protocols:

  chunks    the window in chunks of 128 tokens, as our `kv` reads it; every token but the last is compared
  prefill   all but the last 256 tokens in one call, these in chunks of 32, only these compared: the kindest to a cache
            that rounds everything anew whenever its residual is full (see peers/kv_quantized.py)

`bits` are stored ones of a number beyond window and sinks, scales and zero points in 16 bits; `ratio` is of the cache's
bytes to those of a bf16 cache of this context, full precision in 16 bits; `bytes` were measured, full precision (with
the peers scales too) in the 32 bits that were computed in. Peers have no window behind a call that fills their
residual. `against` compares with the best peer of as many bits a code, token by token.

Each row is kept under --work, named with a hash of all that it depends on; a second call runs only what is missing.
"""

import argparse
import fnmatch
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import HERE, WIKITEXT_TEST, write_result
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

import subeight
from subeight.advise.kv import PARTS, SEGMENT, Loaded
from subeight.evals.divergence import divergences
from subeight.evals.stats import mean_interval, paired_ratio, share_interval
from subeight.kv.memory import Shape, cache_bytes, mean_bits
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked
from subeight.probe.caches import CHUNK, final_states, finds
from subeight.text.long import long_windows
from subeight.text.needles import needles

SOURCE = Path(subeight.__file__).parent
CHUNKS, PREFILL = "chunks", "prefill"
LAST, STEP = 256, 32  # of prefill: how many tokens are compared, and come in one call
SEGMENTS = {CHUNKS: SEGMENT, PREFILL: 64}  # tokens that are resampled together
WINDOWS = 2
SHORT = 1024  # tokens of context up to which every policy is measured
BASES = ("", ",rotate", ",rope=before", ",rotate,rope=before")
BEST = "rotate,rope=before"
ALL_ROUNDED = "window=0,sinks=0"
POLICIES = (
    "int8:token,axis=token",
    *("int4:g64" + rest for rest in (*BASES, ":asym", f":asym,{BEST}", ",axis=token,rotate")),
    *(f"int4:{rest},{ALL_ROUNDED}" for rest in ("g64", f"g64:asym,{BEST}")),
    *("int3:g64" + rest for rest in ("", ":asym", f":asym,{BEST}")),
    *("int2:g64" + rest for rest in ("", ",rotate", ":asym", ":asym,rotate", f":asym,{BEST}")),
    f"int2:g32:asym,{BEST}",
    f"int2:g64:asym,{BEST},{ALL_ROUNDED}",
    f"keys=int3:g64:asym,values=int2:g64:asym,{BEST}",
)
LONG = ("int4:g64", f"int4:g64:asym,{BEST}", "int2:g64:asym", f"int2:g64:asym,{BEST}", f"int2:g32:asym,{BEST}")
ASKED = ("none", "int4:g64", f"int4:g64:asym,{BEST}", "int2:g64:asym", f"int2:g64:asym,{BEST}")
REPEATS = {512: 2, 1024: 2, 2048: 2}  # prompts of each depth
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ENOUGH = 0.8  # of the hidden numbers that the full model finds, below which they say nothing about policies


@dataclass(frozen=True)
class Peer:
    """A backend of transformers' QuantizedCache and how its groups run."""

    backend: str
    bits: int
    key: int
    value: int

    @property
    def label(self) -> str:
        return f"{self.backend}/int{self.bits}/keys={self.key},values={self.value}" if self.bits < 16 else self.backend

    @property
    def options(self) -> list[str]:
        return [
            *("--backend", self.backend, "--bits", str(self.bits)),
            *("--axis-key", str(self.key), "--axis-value", str(self.value)),
        ]


PLAIN = Peer("full", 16, 0, 0)  # transformers' plain cache: a check of the peers' reading
PEERS = (
    PLAIN,
    *(Peer("quanto", bits, key, 0) for bits in (4, 2) for key in (0, -1)),
    *(Peer("hqq", bits, key, 1) for bits in (4, 2) for key in (1, 0)),
    *(Peer("quanto", bits, -1, -1) for bits in (4, 2)),
)


@dataclass(frozen=True)
class Window:
    """Tokens, the states that the head reads of them in full precision, and keys and values of all but the last 256."""

    ids: Tensor
    states: Tensor
    prompt: Sequence[tuple[Tensor, Tensor]]


class Bench:
    """The model and its windows, made when they are needed, and what was measured before."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.model = Model("smollm2")
        self.shape = Shape.of(self.model.config)
        rooms = [path for room in ("kv", "formats") for path in sorted((SOURCE / room).glob("*.py"))]
        read = [path for path in rooms if not path.name.startswith("ggml")]  # no cache is stored in GGUF's blocks
        self.code = hashed([*read, SOURCE / "probe" / "caches.py"])
        self.script = hashed([HERE / "peers" / "kv_quantized.py"])
        self.text = hashed([WIKITEXT_TEST])
        self._windows: dict[int, list[Window]] = {}

    @cached_property
    def loaded(self) -> Loaded:
        return Loaded.of("full", self.model, torch.float32, torch.device("cpu"))

    def windows(self, context: int) -> list[Window]:
        """The first windows of the text; those of one context at a time are held."""
        if context not in self._windows:
            self._windows = {context: [self._window(ids) for ids in self.ids(context)]}
        return self._windows[context]

    def ids(self, context: int) -> Tensor:
        """[windows, context]."""
        return torch.tensor(long_windows([WIKITEXT_TEST], self.model.tokenizer(), context, self.given.windows))

    def _window(self, ids: Tensor) -> Window:
        cache = DynamicCache(config=self.model.config)
        states = self.read(ids, cache)
        prompt = [(layer.keys[:, :, :-LAST], layer.values[:, :, :-LAST]) for layer in cache.layers]
        return Window(ids, states, prompt)

    def read(self, ids: Tensor, cache: Cache, chunk: int = CHUNK) -> Tensor:
        """Final states of tokens that come in chunks."""
        return final_states(self.loaded.module, self.loaded.trunk, ids, cache, chunk)

    def kept(self, about: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What was measured about this before, or is now; None with --list where it is missing."""
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = self.given.work / f"{name}.pt"
        if not path.is_file():
            print("missing" if self.given.list else "measuring", json.dumps(about), file=sys.stderr, flush=True)
            if self.given.list:
                return None
            torch.save(make(), path)
        return torch.load(path, weights_only=False)


def main() -> None:
    """Measures what is missing and writes `results/kv_policies.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kv_policies")
    parser.add_argument("--only", default="*", help="rows by name, like 'hqq/*' or 'ours/int2*'")
    parser.add_argument("--contexts", default="1024,4096")
    parser.add_argument("--protocols", default=",".join(SEGMENTS))
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--passkeys", default=",".join(map(str, REPEATS)), help="their lengths; 0 for none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="kv_policies", help="of the result")
    parser.add_argument("--list", action="store_true", help="say what is missing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    bench = Bench(given)
    contexts, lengths = ([int(number) for number in text.split(",")] for text in (given.contexts, given.passkeys))
    protocols = given.protocols.split(",")
    questions = [Question(context, protocol, given.windows) for context in contexts for protocol in protocols]
    rows = [row for question in questions for row in rows_of(bench, question)]
    hidden = [row for length in lengths if length for row in passkeys(bench, length)]
    if not given.list:
        write_result(given.name, {"rows": rows, "passkeys": hidden}, model="smollm2", windows=given.windows)
        print("\n".join(map(line, rows)))


@dataclass(frozen=True)
class Question:
    """One context read by one protocol."""

    context: int
    protocol: str
    windows: int

    def segments(self, tokens: int) -> np.ndarray:
        """Which tokens of [windows, tokens] are resampled together."""
        first = np.arange(self.windows)[:, None] * self.context
        return (first + np.arange(tokens) // SEGMENTS[self.protocol]).ravel()


@dataclass(frozen=True)
class Cell:
    """One row as it was measured: KL of every token [windows, tokens], and the rest."""

    label: str
    width: int
    peer: bool
    measured: dict[str, Any]


def rows_of(bench: Bench, question: Question) -> list[dict[str, Any]]:
    """All rows of one context and protocol, each of ours beside the best peer."""
    cells = list(cells_of(bench, question))
    peers = [cell for cell in cells if cell.peer and cell.label != PLAIN.label]
    return [row_of(bench, question, cell, peers) for cell in cells]


def cells_of(bench: Bench, question: Question) -> Iterator[Cell]:
    """What is asked for, measured or kept."""
    about = asdict(question) | {"text": bench.text}
    for peer in PEERS:
        if fnmatch.fnmatch(peer.label, bench.given.only):
            made = bench.kept(about | asdict(peer) | {"script": bench.script}, partial(theirs, bench, question, peer))
            if made is not None:
                yield Cell(peer.label, peer.bits, True, made)
    for text in POLICIES if question.context <= SHORT else LONG:
        if fnmatch.fnmatch(f"ours/{text}", bench.given.only):
            policy = KVPolicy.parse(text)
            made = bench.kept(about | {"policy": text, "code": bench.code}, partial(ours, bench, question, policy))
            if made is not None:
                yield Cell(f"ours/{text}", policy.values.code_bits if policy.values else 16, False, made)


def ours(bench: Bench, question: Question, policy: KVPolicy) -> dict[str, Any]:
    """KL of every token, and what the cache holds, under a policy."""
    kl, held = [], 0
    for window in bench.windows(question.context):
        cache = bench.loaded.cache(policy)
        if question.protocol == CHUNKS:
            states = bench.read(window.ids, cache)
        else:
            # a call attends to its own tokens in full precision, so this is what one call of them all would leave
            for layer, (keys, values) in enumerate(window.prompt):
                cache.update(keys, values, layer)
            states = bench.read(window.ids[-LAST:], cache, STEP)
        kl.append(divergence(bench, window, states))
        held = cache.nbytes
    small = cache_bytes(bench.shape, policy, question.context)
    return {"kl": np.stack(kl), "bits": mean_bits(bench.shape, policy), "bytes": held, "bytes16": small}


def theirs(bench: Bench, question: Question, peer: Peer) -> dict[str, Any]:
    """The same of a peer, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        ids, out = Path(scratch) / "ids.pt", Path(scratch) / "out.pt"
        torch.save(bench.ids(question.context), ids)
        python, script = bench.given.envs / "kv" / "bin" / "python", HERE / "peers" / "kv_quantized.py"
        tail = [*peer.options, "--protocol", question.protocol, "--threads", str(bench.given.threads)]
        subprocess.run([python, script, unpacked(), ids, out, *tail], check=True)
        said = torch.load(out)
    sides = [said["keys"], said["values"]]
    kl = [divergence(bench, *pair) for pair in zip(bench.windows(question.context), said["states"], strict=True)]
    return {
        "kl": np.stack(kl),
        "bits": [stored_bits(bench.shape, side) for side in sides],
        "bytes": sum(side["codes"] + side["scales"] + side["plain"] for side in sides),
        "bytes16": sum(side["codes"] + (side["scales"] + side["plain"]) / 2 for side in sides),
        "versions": said["versions"],
    }


def stored_bits(shape: Shape, side: dict[str, int]) -> float:
    """Of a number in codes, its part of scales and zero points in 16 bits."""
    numbers = shape.heads * shape.head_dim * len(shape.sliding) * side["tokens"]
    return 8 * (side["codes"] + side["scales"] / 2) / numbers if numbers else 16.0


def divergence(bench: Bench, window: Window, states: Tensor) -> np.ndarray:
    """Of the last tokens of a window, those whose states are given, but the very last."""
    head, count = bench.loaded.head, len(states)
    full, aims = window.states[-count:-1], window.ids[-count:][1:]
    return divergences(full, [states[:-1]], [head, head], aims).kl[0].numpy()


def row_of(bench: Bench, question: Question, cell: Cell, peers: Sequence[Cell]) -> dict[str, Any]:
    """One row of the result."""
    measured = cell.measured
    kl = measured["kl"]
    segments = question.segments(kl.shape[1])
    found = mean_interval(kl.ravel(), segments)
    row = {
        "row": cell.label,
        "context": question.context,
        "protocol": question.protocol,
        "bits": dict(zip(("keys", "values"), measured["bits"], strict=True)),
        "kl": found.value,
        "kl_ci": found.ci,
        "kl_by_quarter": [float(part.mean()) for part in np.array_split(kl, PARTS, axis=1)],
        "bytes": int(measured["bytes"]),
        "ratio": measured["bytes16"] / cache_bytes(bench.shape, KVPolicy(), question.context),
    }
    if cell.peer:
        return row | {"versions": measured["versions"]}
    rivals = [peer for peer in peers if peer.width == cell.width]
    if rivals:
        best = min(rivals, key=lambda peer: peer.measured["kl"].mean())
        share = paired_ratio(kl.ravel(), best.measured["kl"].ravel(), segments)
        row["against"] = {"row": best.label, "kl_ratio": share.value, "kl_ratio_ci": share.ci}
    return row


def line(row: dict[str, Any]) -> str:
    """A row for reading."""
    low, high = row["kl_ci"] or (float("nan"), float("nan"))
    against = row.get("against")
    beside = f"  {against['kl_ratio']:.2f} of {against['row']}" if against else ""
    quarters = " ".join(f"{value:.4f}" for value in row["kl_by_quarter"])
    return (
        f"{row['context']:5} {row['protocol']:8}{row['row']:40}{row['bits']['keys']:6.3f} {row['bits']['values']:6.3f}"
        f"{row['kl']:9.5f} [{low:.5f}, {high:.5f}] ({quarters}) {row['bytes'] / 1e6:6.1f} MB {row['ratio']:.3f}{beside}"
    )


def passkeys(bench: Bench, length: int) -> Iterator[dict[str, Any]]:
    """Hidden numbers that are found at one length, under each policy."""
    enough = True
    for text in ASKED:
        about = {"passkey": text, "length": length, "depths": DEPTHS, "repeats": REPEATS[length], "code": bench.code}
        if not fnmatch.fnmatch(f"ours/{text}", bench.given.only) and text != "none":
            continue
        made = bench.kept(about, partial(found_numbers, bench, text, length))
        if made is None:
            continue
        right = made["right"]
        share = share_interval(sum(right), len(right))
        if text == "none":
            enough = share.value >= ENOUGH
        cells = {str(depth): [sum(some), len(some)] for depth, some in made["by_depth"].items()}
        yield {
            "policy": text,
            "length": length,
            "found": sum(right),
            "asked": len(right),
            "share_ci": share.ci,
            "by_depth": cells,
            "full_model_finds_enough": enough,
        }


def found_numbers(bench: Bench, text: str, length: int) -> dict[str, Any]:
    """Which of the prompts' numbers are the likeliest answer."""
    policy, loaded = KVPolicy.parse(text), bench.loaded
    by_depth: dict[float, list[bool]] = {}
    for needle in needles(bench.model.tokenizer(), [length], DEPTHS, repeats=REPEATS[length]):
        found = finds(loaded.module, needle, loaded.cache(policy), min(CHUNK, length // PARTS))
        by_depth.setdefault(needle.depth, []).append(found)
    return {"right": [one for some in by_depth.values() for one in some], "by_depth": by_depth}


def hashed(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    main()
