"""What every verb does around its work: threads, device, precision, the stack, the clock, and the record at the end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from subeight.evals.passes import Computing
from subeight.models.model import Model, torch_device
from subeight.models.precision import compute_dtype
from subeight.records import Coordinates, Record, Run, Stack, default_directory, peak_rss_bytes
from subeight.report import build
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
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        self.device = torch_device(self.options.device)
        self.dtype = compute_dtype(self.options.dtype, self.device)
        torch.use_deterministic_algorithms(True, warn_only=True)
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
        return Computing(self.dtype, self.device, self.options.quiet)

    def model(self, name: str) -> Model:
        """Opens a model as the options say."""
        return Model(name, trust_remote_code=self.options.trust_remote_code)

    def evaluation(self, model: Model) -> EvaluationSet:
        """The evaluation text as this model's tokenizer cuts it."""
        return evaluate_set(
            list(self.options.evals),
            model.tokenizer(),
            window=min(self.options.eval_window, context_length(model)),
            tokens=self.options.eval_tokens,
            longest=context_length(model),
        )

    def run(self, model: Model, identity: Mapping[str, Any]) -> Run:
        """The run directory: `--out`, or one named after what is asked."""
        identity = {**identity, "stack": self.stack.hash}
        directory = self.options.out or default_directory(self.verb, model.label, identity)
        return Run.create(directory, self.verb, identity)

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
    """What a verb gives back: its record, and where it and its report lie (None: nothing was written)."""

    record: Record
    directory: Path | None = None
    report: Path | None = None
    lines: tuple[str, ...] = ()

    @property
    def numbers(self) -> dict[str, Any]:
        return self.record.numbers


def finish(run: Run, record: Record, lines: tuple[str, ...] = ()) -> Result:
    """Writes the record and its report into the run directory."""
    run.write_record(record)
    page = build(run.records(), run.directory / "report.html")
    return Result(record, run.directory, page, lines)


def context_length(model: Model) -> int:
    """How many tokens the model takes."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 20)


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
        }
    }
