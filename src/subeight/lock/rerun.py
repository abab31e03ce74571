"""The locked evaluation run by another interpreter: `subeight verify` in an environment with some older packages."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from subeight.errors import UndecidedError
from subeight.lock.environment import Environments
from subeight.lock.outcomes import Outcome
from subeight.models.model import Model
from subeight.models.read.safetensors import index_file
from subeight.records import Run

_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Rerun:
    """What is run, and with which settings; `below` says where environments and results go."""

    lock: Path
    candidate: str
    baseline: str
    device: str
    threads: int

    @classmethod
    def of(cls, path: Path, baseline: Model, candidate: Model, device: torch.device, threads: int) -> Self:
        """The evaluation of the lock at `path` with these models."""
        return cls(path.resolve(), _found(candidate), _found(baseline), str(device), threads)

    def below(self, root: Path, environments: Environments | None = None) -> "Environment":
        """A rebuilder that writes below `root`, which the caller removes; what was fetched before may be used again."""
        return Environment(self, root.resolve(), environments or Environments(root.resolve()))


@dataclass
class Environment:
    """A `Rebuilder` of real environments."""

    what: Rerun
    root: Path
    environments: Environments
    runs: int = 0

    def fetch(self, package: str, version: str) -> str | None:
        """Gets an old version; returns why that cannot be, else None."""
        return self.environments.fetch(package, version)

    def run(self, pins: Mapping[str, str]) -> Outcome:
        """What every sample gives with these packages; raises UndecidedError where that stack cannot run it."""
        self.runs += 1
        out = self.root / f"run-{self.runs}"
        self.root.mkdir(parents=True, exist_ok=True)
        command = [
            str(self.environments.python(pins)), "-m", "subeight.cli.main", "verify", self.what.candidate,
            "--lock", str(self.what.lock), "--baseline", self.what.baseline, "--device", self.what.device,
            "--threads", str(self.what.threads), "--out", str(out), "--quiet", "--json",
        ]  # fmt: skip
        # A cache of its own holds what the baseline gives on this stack, and nothing else.
        variables = {**os.environ, "XDG_CACHE_HOME": str(self._cache())}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.root, timeout=_SECONDS, env=variables)
        # Whether it passed does not matter here, only that it measured.
        if not (out / "record.json").is_file():
            lines = done.stderr.strip().splitlines() or ["it ended without a word"]
            pinned = ", ".join(f"{name}=={version}" for name, version in pins.items())
            raise UndecidedError(f"With {pinned} the locked evaluation does not run: {lines[-1][:300]}")
        return Outcome.of_rows(Run.open(out).read_samples())

    def states(self) -> list[Tensor]:
        """The baseline's final states in front of the scored tokens, batch by batch, as the last run computed them."""
        return kept_states(self._cache())

    def _cache(self) -> Path:
        return self.root / f"cache-{self.runs}"


def kept_states(cache: Path) -> list[Tensor]:
    """The states of the one reference pass that a cache holds."""
    (path,) = cache.rglob("reference-*.safetensors")
    stored = index_file(path)
    return [stored[name].read() for name in sorted(stored)]


def _found(model: Model) -> str:
    """The files of a model by their path: another environment need not find the same under an alias or a hub id."""
    return str((model.source.gguf or model.directory).resolve())
