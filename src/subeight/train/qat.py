"""Quantization-aware training: the student's logits toward the baseline's, by transformers' Trainer and accelerate.

End to end, from the best post-training result (EfficientQAT's second phase, Chen et al. 2024,
https://arxiv.org/abs/2407.11062, with the codes trained too: LLM-QAT, Liu et al. 2023, https://arxiv.org/abs/2305.17888).
Some sequences are held out: what is kept is what lost least on them, the start included.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import get_last_checkpoint

from subeight.errors import OutputError
from subeight.formats import QTensor
from subeight.models.model import Model
from subeight.records.progress import Advance, progress
from subeight.train.evidence import evidence
from subeight.train.learning import Distilled, QuietAdam
from subeight.train.student import Student

HELD = 0.0625  # share of the sequences by which the best step is chosen
MOST = 24  # of them at most: they are read ten times
CHECKS = 8  # times that they are read


@dataclass(frozen=True)
class Training:
    """How it is trained: steps of `batch` sequences, `rate` codes in the first of them."""

    steps: int
    batch: int = 4
    rate: float = 0.004
    seed: int = 0
    checkpointing: bool = False
    quiet: bool = False
    processes: int = 1


@dataclass
class Task:
    """What is learned from: the student and its loss, the baseline's final states, token ids."""

    student: Student
    distilled: Distilled
    targets: Callable[[Tensor], Tensor]  # ids [batch, length] to the baseline's states [batch, length, width]
    ids: Int[Tensor, "sequences length"]


def train(task: Task, training: Training, folder: Path) -> dict[str, Any]:
    """Trains the student where it stands; goes on from what a killed run left in `folder`.

    Returns what is worth recording: the loss on the held-out sequences before, after and along the way.

    Raises:
        OutputError: there is no space for the state of the training.
    """
    held, learned = split(task.ids, training.seed)
    start = {name: value.detach().clone() for name, value in _trained(task.distilled).items()}
    if training.checkpointing:
        task.student.module.gradient_checkpointing_enable({"use_reentrant": False})
    with progress(training.steps, "Training", "steps", quiet=training.quiet) as advance:
        trainer = _Trainer(task, training, folder, learned, held, advance)
        try:
            trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
        except OSError as error:
            raise OutputError(f"The state of the training cannot be kept in {folder} ({error}); free space.") from error
        curve, last = trainer.curve(), trainer.loss_of_held()
    first = curve[0][1]
    if not last < first:
        for name, value in _trained(task.distilled).items():
            value.data.copy_(start[name])
    return {
        "steps": training.steps,
        "loss_before": first,
        "loss_after": min(first, last),
        "curve": curve,
    }


def turned(start: Model, now: Mapping[str, QTensor]) -> dict[str, float]:
    """The share of each linear's codes that are others than in the model that it began with."""
    assert start.codes is not None
    return {name: float((start.codes.read(name).codes != one.codes).float().mean()) for name, one in now.items()}


@torch.no_grad()
def loss_of_held(task: Task, training: Training) -> float:
    """The loss on the sequences that `train` holds out."""
    held, _ = split(task.ids, training.seed)
    losses = [float(task.distilled(ids, task.targets(ids))["loss"]) * len(ids) for ids in held.split(training.batch)]
    return sum(losses) / len(held)


def forecast(task: Task, training: Training) -> dict[str, float]:
    """What `train` will take and can learn, from one step; nothing is changed. See `evidence`."""
    ids = task.ids[: training.batch]
    if ids.is_cuda:
        task.distilled(ids, task.targets(ids))["loss"].backward()  # the first pass loads what it runs
        task.distilled.zero_grad(set_to_none=True)
    began = time.monotonic()
    loss = task.distilled(ids, task.targets(ids))["loss"]
    forward = time.monotonic() - began
    loss.backward()
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    step = time.monotonic() - began
    slopes = [weight.position.grad for weight in task.student.weights.values()]
    held, _ = split(task.ids, training.seed)
    seconds = training.steps * step + (CHECKS + 2) * forward * len(held) / training.batch
    read = training.steps * training.batch * training.processes
    learned = min(read, len(task.ids) - len(held)) * ids.shape[1]  # what is read again tells nothing new
    known = evidence([slope for slope in slopes if slope is not None], ids.numel(), learned)
    task.distilled.zero_grad(set_to_none=True)
    return {"seconds": seconds, "seconds_a_step": step, "tokens": learned, **known}


def split(ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The sequences that are held out, and those that are learned from."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    count = min(MOST, max(1, round(HELD * len(ids))))
    return ids[order[:count]], ids[order[count:]] if len(ids) > count else ids


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


class _Trainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """transformers' Trainer with the baseline's states beside the ids, and the best step by the held-out loss."""

    def __init__(
        self, task: Task, training: Training, folder: Path, learned: Tensor, held: Tensor, advance: Advance
    ) -> None:
        self._targets, self._held = task.targets, held
        optimizer = QuietAdam(task.student, training.rate)
        every = max(1, training.steps // CHECKS)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=training.batch,
            per_device_eval_batch_size=training.batch,
            max_steps=training.steps,
            max_grad_norm=0.0,  # the optimizer's steps do not depend on the gradient's size
            seed=training.seed,
            data_seed=training.seed,
            use_cpu=held.device.type == "cpu",
            eval_strategy="steps",
            eval_on_start=True,  # not before it: what was evaluated, accelerate does not prepare for training any more
            eval_steps=every,
            save_steps=every,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        super().__init__(
            model=task.distilled,
            args=arguments,
            train_dataset=list(learned),
            eval_dataset=list(held),
            data_collator=lambda rows: {"input_ids": torch.stack(rows)},
            optimizers=(optimizer, schedule),
            callbacks=[_Advance(advance)],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs, targets=self._targets(inputs["input_ids"]))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> tuple[Any, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def curve(self) -> list[list[float]]:
        """The held-out loss by step, as it was read on the way."""
        rows = {row["step"]: row["eval_loss"] for row in self.state.log_history if "eval_loss" in row}
        return [[step, loss] for step, loss in sorted(rows.items())]

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Nothing: it stands there already, maybe in shards, which cannot be moved."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = self.model.state_dict()  # of shards every process gives its own
        self._save(output_dir, state_dict=state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        states = {OPTIMIZER_NAME: self.optimizer.state_dict(), SCHEDULER_NAME: self.lr_scheduler.state_dict()}
        for name, state in states.items() if self.args.should_save else ():
            torch.save(state, Path(output_dir) / name)

    def loss_of_held(self) -> float:
        return float(self.evaluate()["eval_loss"])


class _Advance(TrainerCallback):  # type: ignore[misc]
    def __init__(self, advance: Advance) -> None:
        self._advance, self._seen = advance, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._advance(state.global_step - self._seen)
        self._seen = state.global_step
