"""What every verb does around its work: threads, device, precision, the stack, the clock, and the record at the end."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from subeight.errors import InputError, ModelError, OutputError
from subeight.evals.passes import Computing, context_length
from subeight.evals.scoring import ANSWER_TOKENS
from subeight.evals.spread import PassJob
from subeight.lock.stacks import distributions
from subeight.models.model import Model, torch_device
from subeight.models.precision import compute_dtype
from subeight.models.source import ALIAS
from subeight.records import (
    Coordinates,
    Record,
    Run,
    Stack,
    default_directory,
    fingerprint,
    peak_rss_bytes,
    require_comparable,
    require_space,
)
from subeight.records.memory import free_bytes
from subeight.report import build
from subeight.sweep import Crew, Where, hire
from subeight.text import Calibration, EvaluationSet, evaluate_set
from subeight.verbs.options import Options


@dataclass
class Session:
    """One call of a verb."""

    verb: str
    options: Options
    device: torch.device = field(init=False)
    dtype: torch.dtype = field(init=False)
    stack: Stack = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        require_comparable(Coordinates(), Coordinates(), across=self.options.across)  # a misspelt one is refused now
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        self.device = torch_device(self.options.device)
        self.dtype = compute_dtype(self.options.dtype, self.device)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A debugging aid that costs a pass over every fresh tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        gpu = None
        if self.device.type == "cuda":
            gpu = {"name": torch.cuda.get_device_name(self.device), "cuda": torch.version.cuda}
        self.stack = Stack.today(
            torch.get_num_threads(),
            self.device.type,
            {"tf32": torch.backends.cuda.matmul.allow_tf32, "deterministic": True},
            dtype=str(self.dtype).removeprefix("torch."),
            gpu=gpu,
        )

    @property
    def computing(self) -> Computing:
        options = self.options
        scratch = (options.scratch or options.states_cache).resolve()
        return Computing(self.dtype, self.device, options.quiet, options.max_memory, scratch)

    def computing_in(self, workers: Where | None) -> Computing:
        """The same for each of some workers: quiet, and with its part of the memory that is free where none was named.

        How many share a machine of a cluster is not known: as many as this one has processors.
        """
        count = 1 if workers is None else workers.workers or (os.cpu_count() or 1 if workers.cluster else 1)
        room = self.options.max_memory or free_bytes() // (2 * count)
        return replace(self.computing, quiet=True, max_memory=room)

    @contextmanager
    def crew(self, workers: Where | None) -> Iterator[Crew[Any] | None]:
        """Workers that run texts through models, where any are asked for."""
        if workers is None or workers == Where():
            yield None
            return
        threads, trust = torch.get_num_threads(), self.options.trust_remote_code
        with hire(PassJob(self.computing_in(workers), threads, trust), workers) as crew:
            yield crew

    @property
    def cache(self) -> Path:
        """Where baselines' states are kept: those of another stack are not the same to the last bit.

        Any package may change them, so all of them count here, not only those that a stack's fingerprint names.
        """
        return self.options.cache / self.stack.hash / fingerprint(distributions())

    def model(self, name: str) -> Model:
        """Opens a model as the options say."""
        return Model(name, trust_remote_code=self.options.trust_remote_code)

    def evaluation(
        self, model: Model, sources: Sequence[str] | None = None, tokens: int | None = None
    ) -> EvaluationSet:
        """The evaluation text (or other sources) as this model's tokenizer cuts it, with room left for answers."""
        longest = context_length(model)
        return evaluate_set(
            list(sources or self.options.evals),
            model.tokenizer(),
            window=min(self.options.eval_window, longest),
            tokens=tokens or self.options.eval_tokens,
            longest=max(longest - ANSWER_TOKENS, longest // 2),
        )

    @contextmanager
    def run(self, model: Model, identity: Mapping[str, Any], needed: int = 0) -> Iterator[Run]:
        """The run directory: `--out`, or one named after what is asked; `needed` bytes must be free on its disk.

        Bad input that is found only inside (a NaN in the last block) leaves nothing behind, unless the directory was
        begun before.
        """
        identity = {**identity, "seed": self.options.seed, "stack": self.stack.hash}
        directory = Path(self.options.out or default_directory(self.verb, model.label, identity))
        existed, begun = directory.is_dir(), (directory / "run.json").is_file()
        require_space(directory, needed - (_size(directory) if begun else 0))
        run = Run.create(directory, self.verb, identity)
        try:
            yield run
        except OutputError:  # a full disk: what is finished is kept, the same command continues
            raise
        except InputError:
            if not begun:
                _empty(directory)
                if not existed:
                    directory.rmdir()
            raise

    def record(self, coordinates: Coordinates, numbers: dict[str, Any], **parts: Any) -> Record:
        """The record of this call; `parts` are subject, settings and warnings."""
        settings = {
            "seed": self.options.seed,
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            **parts.pop("settings", {}),
        }
        if self.options.note:
            settings["settings_note"] = self.options.note
        return Record(
            kind=self.verb,
            coordinates=coordinates,
            numbers=numbers,
            seconds=time.monotonic() - self.began,
            peak_rss_bytes=peak_rss_bytes(),
            command=list(self.options.command),
            settings=settings,
            stack=self.stack.contents(),
            **parts,
        )


@dataclass(frozen=True)
class Result:
    """What a verb gives back: its record, and where it and its report lie (None: nothing was written).

    `exit_status` is what the command line ends with where the work is done and the answer is no (1) or not known (3).
    """

    record: Record
    directory: Path | None = None
    report: Path | None = None
    lines: tuple[str, ...] = ()
    exit_status: int = 0

    @property
    def numbers(self) -> dict[str, Any]:
        return self.record.numbers


def where(name: str) -> str:
    """A model's name as a later command finds it: a local path made absolute, an alias or a hub id as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name != ALIAS and path.exists() else name


def finish(run: Run, record: Record, lines: tuple[str, ...] = ()) -> Result:
    """Writes the record and its report into the run directory."""
    run.write_record(record)
    page = build(run.records(), run.directory / "report.html")
    return Result(record, run.directory, page, lines)


def finished(run: Run, checkpoints: list[Path]) -> Result | None:
    """What the same command made here before, where its checkpoints are whole."""
    if not (run.directory / "record.json").is_file():
        return None
    try:
        for directory in checkpoints:
            Model(directory)
    except ModelError:
        return None
    for directory in checkpoints:
        shutil.rmtree(directory / ".blocks", ignore_errors=True)
    page = build(run.records(), run.directory / "report.html")
    return Result(run.read(), run.directory, page, (f"{run.directory} is finished; nothing was done again.",))


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def calibration_settings(calibration: Calibration | None) -> dict[str, Any]:
    """What a record says of the calibration text."""
    if calibration is None:
        return {"calibration": None}
    return {
        "calibration": {
            "source": calibration.source,
            "sequences": calibration.ids.shape[0],
            "length": calibration.ids.shape[1],
            "seed": calibration.seed,
            **({"added": calibration.added} if calibration.added else {}),
            **({"forced": True} if calibration.forced else {}),
        }
    }
