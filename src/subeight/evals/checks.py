"""A user's own check of answers: a command that reads one answer and says by its exit status whether it is right.

Both models answer every prompt greedily; the command gets `{"prompt", "answer", "category", "document"}` as JSON on its
standard input, and its exit status 0 means right. What the baseline itself gets wrong counts for nothing.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from subeight.errors import InputError
from subeight.evals.loss import Loss, prompt_loss
from subeight.models.streamed import Streamed
from subeight.models.whole import Whole
from subeight.text import Sample
from subeight.text.tokens import Tokenizer

TOKENS = 64
PREFIX = "check:"
_UNRUNNABLE = (126, 127)
_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """The prompts, the command, and where an answer ends."""

    command: str
    samples: tuple[Sample, ...]
    tokenizer: Tokenizer
    stop: frozenset[int]
    passed: tuple[bool, ...] = ()  # by the baseline

    def answers(self, model: Whole | Streamed) -> list[str]:
        """The greedy answers of a model."""
        written = model.greedy([list(prompt_of(sample)) for sample in self.samples], TOKENS, set(self.stop))
        return [str(self.tokenizer.decode(ids)) for ids in written]

    def passes(self, answers: Sequence[str]) -> list[bool]:
        """Runs the command on each answer.

        Raises:
            InputError: it cannot be run.
        """
        return [self._passes(sample, answer) for sample, answer in zip(self.samples, answers, strict=True)]

    def _passes(self, sample: Sample, answer: str) -> bool:
        given = {
            "prompt": str(self.tokenizer.decode(list(prompt_of(sample)))),
            "answer": answer,
            "category": sample.category,
            "document": sample.document,
        }
        try:
            done = subprocess.run(
                self.command, shell=True, input=json.dumps(given), text=True, capture_output=True, timeout=_SECONDS
            )  # the command is the user's own, as in make or git
        except subprocess.TimeoutExpired:
            return False
        if done.returncode in _UNRUNNABLE:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"The check command {self.command!r} cannot be run ({why}); give one that can.")
        return done.returncode == 0

    def loss(self, model: Whole | Streamed) -> Loss:
        """The share of prompts that the baseline answers right and this model wrong."""
        right = self.passes(self.answers(model))
        wrong = [before and not after for before, after in zip(self.passed, right, strict=True)]
        return prompt_loss(wrong, [sample.category for sample in self.samples])


def prompt_of(sample: Sample) -> tuple[int, ...]:
    """What is answered: the tokens before the scored ones, or the whole sample where all of it is scored."""
    first = next((at for at, scored in enumerate(sample.scored) if scored), len(sample.ids))
    return sample.ids[:first] if first > 1 else sample.ids


def require_passing(check: Check, answers: Sequence[str]) -> tuple[bool, ...]:
    """Which of its own answers the baseline passes with; InputError where it fails everywhere."""
    passed = tuple(check.passes(answers))
    if not any(passed):
        raise InputError(
            f"The check command {check.command!r} fails on all {len(passed)} answers of the baseline itself, so "
            "nothing can be blamed on the candidate; give a check that the full-precision model passes."
        )
    return passed
