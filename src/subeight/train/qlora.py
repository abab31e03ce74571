"""Training adapters on a packed base by transformers' Trainer: checkpoints, resuming and many devices are its own.

QLoRA: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from subeight.errors import InputError
from subeight.records.progress import progress
from subeight.text import Sample
from subeight.train.adapters import load_into, save_adapter
from subeight.train.qlora_data import IGNORED, LabelledRows, collate, scored_columns

STATE = "trainer_state.json"
_PARTS = (STATE, "optimizer.pt", "scheduler.pt", "adapter_model.safetensors")


@dataclass(frozen=True)
class Course:
    """How adapters are trained: AdamW, a linear warm-up, then a cosine to zero.

    `steps` counts updates and overrides `epochs`; `batch` rows go through the model at once, `accumulate` such batches
    make one update on each device. `rate` is the largest learning rate, `save` the updates between checkpoints, and
    `recompute` keeps one activation a block and makes the others again in the backward pass.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch: int = 8
    accumulate: int = 1
    rate: float = 2e-4
    warmup: float = 0.05
    decay: float = 0.0
    clip: float = 1.0
    save: int = 100
    recompute: bool = True

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise InputError(f"--steps was given {self.steps}; give 0 or more updates.")
        if self.steps is None and not 0 < self.epochs < math.inf:
            raise InputError(f"--epochs was given {self.epochs:g}; give a number above 0.")
        if min(self.batch, self.accumulate, self.save) < 1:
            raise InputError("--batch, --accumulate and --save-every must be 1 or more.")
        if not 0 < self.rate < 1:
            raise InputError(f"--rate was given {self.rate:g}; give a learning rate between 0 and 1, such as 2e-4.")


@dataclass(frozen=True)
class Learned:
    """What training came to: its loss by update, seconds, and how many updates were taken over from before.

    `device_bytes` is the most memory of a GPU that tensors took at once while it trained.
    """

    curve: tuple[dict[str, float], ...]
    steps: int
    resumed: int
    seconds: float
    tokens: int
    device_bytes: int | None = None

    def numbers(self) -> dict[str, Any]:
        """As a record holds it."""
        return {
            "curve": list(self.curve),
            "steps": self.steps,
            "resumed_at": self.resumed,
            "seconds": self.seconds,
            "scored_tokens": self.tokens,
            **({} if self.device_bytes is None else {"peak_device_bytes": self.device_bytes}),
        }


def train(
    model: Any,
    samples: Sequence[Sample],
    course: Course,
    directory: Path,
    origin: Mapping[str, str | None],
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    quiet: bool = False,
) -> Learned:
    """Trains the adapters of a wrapped model; checkpoints go to `directory`, and the last whole one there is resumed.

    `origin` is what adapters are marked with: the base that they were trained on.

    Raises:
        InputError: the loss is not finite.
    """
    began = time.monotonic()
    rows = LabelledRows(samples)
    arguments = _arguments(course, directory, dtype, device, seed)
    trainer = _ScoredTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=partial(collate, pad=0),
        origin=origin,
    )
    last = last_checkpoint(directory)
    before = 0 if last is None else _state(last)["global_step"]
    total = course.steps or _updates(len(rows), course, arguments.world_size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with progress(total, "Training adapters", "updates", done=before, quiet=quiet) as advance:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Shown(advance))
        found = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if not math.isfinite(found.training_loss):
        raise InputError(f"The loss is {found.training_loss}; give a smaller --rate than {course.rate:g}.")
    curve = [{"step": e["step"], "loss": e["loss"]} for e in trainer.state.log_history if "loss" in e]
    scored = sum(sample.count for sample in samples)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Learned(tuple(curve), trainer.state.global_step, before, time.monotonic() - began, scored, peak)


def _updates(rows: int, course: Course, devices: int) -> int:
    batches = math.ceil(math.ceil(rows / devices) / course.batch)
    return math.ceil(math.ceil(batches / course.accumulate) * course.epochs)


def _arguments(
    course: Course, directory: Path, dtype: torch.dtype, device: torch.device, seed: int
) -> TrainingArguments:
    steps = course.steps
    made = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=course.epochs,
        max_steps=-1 if steps is None else steps,
        per_device_train_batch_size=course.batch,
        gradient_accumulation_steps=course.accumulate,
        learning_rate=course.rate,
        lr_scheduler_type="cosine",
        warmup_steps=course.warmup,
        weight_decay=course.decay,
        max_grad_norm=course.clip,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        activation_checkpointing=course.recompute,
        activation_checkpointing_kwargs={"use_reentrant": False} if course.recompute else None,
        save_strategy="steps",
        save_steps=course.save,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # packed weights lie on one device: several are several processes
    return made


class _ScoredTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """The loss of scored tokens alone; logits are made in no column where no row has one.

    A vocabulary is wide: full logits of a batch can be more memory than the whole packed base.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, origin: Mapping[str, str | None], **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # counts scored tokens over all batches of an update
        self._origin = origin

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        labels = inputs["labels"]
        columns, targets = scored_columns(labels)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=columns,
            use_cache=False,
        )
        logits = outputs.logits
        if logits.shape[1] != len(columns):  # a family that always makes all of them
            logits = logits[:, columns]
        counted = targets != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[counted].float(), targets[counted], reduction="sum")
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002 - adapters only
        save_adapter(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir), self._origin)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_into(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))


class _Shown(TrainerCallback):  # type: ignore[misc]
    """Our own progress; stops where the loss is no number."""

    def __init__(self, advance: Any) -> None:
        self._advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"The loss is {loss} at update {state.global_step}; give a smaller --rate than {args.learning_rate:g}."
            )


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint of an interrupted training; what a kill left of others is removed."""
    found = []
    for path in directory.glob("checkpoint-*"):
        if all((path / part).is_file() for part in _PARTS) and _state(path):
            found.append((_state(path)["global_step"], path))
        elif path.is_dir():
            shutil.rmtree(path)
    return max(found)[1] if found else None


def _state(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except ValueError:
        return {}
