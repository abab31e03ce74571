"""The case under diagnosis: what every examination of a suspect starts from, and what it hands on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from subeight.diagnose.finding import Finding
from subeight.evals.loss import Loss
from subeight.evals.passes import Computing
from subeight.evals.scoring import Question, measure
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.probe.probe import Probe
from subeight.probe.swaps import Swaps
from subeight.text import EvaluationSet


@dataclass(frozen=True)
class Settings:
    """What the user asked for, beyond the models and the prompts."""

    metric: str = "kl"
    seed: int = 0
    calibration: str | None = None  # the text that the candidate was calibrated on, where the user says it
    last_good: Path | None = None  # an older checkpoint or a lock
    served: str | None = None  # URL of an OpenAI-compatible server
    replay: bool = False
    python: str | None = None  # interpreter of the environment that runs the packed model; None: this one
    max_memory: int | None = None
    command: tuple[str, ...] = ()
    thorough: bool = False  # examine every suspect, also when an earlier one explains the loss


@dataclass(frozen=True)
class Case:
    """A candidate that lost something against its baseline on some prompts.

    `question` holds the baseline's pass over the failing prompts, as the baseline's own tokenizer cuts them;
    `whole` is the loss as the user met it, `loss` what is left of it after the repairs so far. A suspect that is found
    guilty hands on a case in which it is repaired: another `candidate` or `baseline`, or more `swaps`.
    """

    candidate: Model
    baseline: Model
    sources: Sequence[str]  # the prompts' sources, as the user gave them
    evaluation: EvaluationSet
    question: Question
    computing: Computing
    cache: Path
    settings: Settings
    whole: Loss
    loss: Loss
    control: Question | None = None  # healthy prompts, where the user gave some
    swaps: Swaps = field(default_factory=Swaps)
    gauge: Gauge | None = None  # set by the baseline's examination
    notes: Mapping[str, Any] = field(default_factory=dict)  # what one suspect tells the later ones, by its name

    def measure(self, model: Model, question: Question | None = None) -> Loss:
        """The loss of a whole model on the failing prompts (or another question), streamed once."""
        return measure(question or self.question, model, self.settings.metric)

    def probe(self, *, candidate: Model | None = None, gauge: Gauge | None = None, base: Swaps | None = None) -> Probe:
        """What measures mixtures of candidate and baseline on the failing prompts; needs a gauge.

        `base` is restored in every measurement (default: the repairs so far).
        """
        found = gauge or self.gauge
        assert found is not None, "the baseline's examination finds the gauge"
        return Probe(
            self.baseline,
            candidate or self.candidate,
            found,
            self.question,
            self.computing,
            metric=self.settings.metric,
            base=self.swaps if base is None else base,
            max_memory=self.computing.room // 2,
        )

    def with_repair(self, loss: Loss, **changes: Any) -> "Case":
        """The case in which something guilty is repaired, and the loss that is left."""
        return replace(self, loss=loss, **changes)


Examined = tuple[Finding, Case]
"""What a suspect's `examine(case)` returns: its finding, and the case as the next suspect meets it."""
