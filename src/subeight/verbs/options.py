"""The options that verbs share; the command line and Python say them alike."""

from dataclasses import dataclass
from pathlib import Path

from subeight.models.smollm2 import cache_directory


@dataclass(frozen=True)
class Options:
    """How a verb runs and on what text; what is None follows from the subject.

    `out` is the run directory (default `runs/<verb>-<model>-<hash>`), `calibration` overrides the recipe's source,
    `per_expert` and `pool` what it says of starved experts,
    `evals` are texts or JSONL files (`builtin` is packaged), `eval_tokens` caps them, `generate` is how many prompts
    are answered greedily by both models, `max_memory` bounds what one process holds of weights and activations at once,
    in bytes, `scratch` keeps activations on disk, `across` names coordinates that may differ on purpose.
    """

    out: Path | None = None
    calibration: str | None = None
    per_expert: int | None = None
    pool: str | None = None
    evals: tuple[str, ...] = ("builtin",)
    eval_tokens: int | None = None
    eval_window: int = 512
    generate: int = 0
    tasks: tuple[str, ...] = ()
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    max_memory: int | None = None
    scratch: Path | None = None
    across: tuple[str, ...] = ()
    dry_run: bool = False
    yes: bool = False
    quiet: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()
    note: str | None = None

    @property
    def cache(self) -> Path:
        """Where baselines' hidden states are kept between runs."""
        return cache_directory() / "references"

    @property
    def states_cache(self) -> Path:
        """Where states lie, while a verb runs, for which memory has no room and no `scratch` was named."""
        return cache_directory() / "states"
