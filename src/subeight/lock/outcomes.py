"""The file beside a lock: which tokens were asked, and what the candidate lost on each sample.

Verification asks the very same ids again, whatever became of the text and the tokenizer since. One row is one sequence;
options of multiple-choice questions follow the texts. Parquet, named by the hash of its own bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from subeight.errors import RecordError
from subeight.evals.passes import Sequences
from subeight.lock.lockfile import Outcomes
from subeight.records import atomic_write
from subeight.text import Sample

Floats = npt.NDArray[np.float64]
_MEASURES = ("kl", "top1", "nll", "nll_baseline")
_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("category", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("scored", pa.list_(pa.bool_())),
        ("question", pa.int32()),  # null: a text, not an option
        ("option", pa.int32()),
        ("answer", pa.int32()),
        ("tokens", pa.int32()),  # scored ones; null where nothing was
        *((name, pa.float64()) for name in _MEASURES),
    ]
)


@dataclass(frozen=True)
class Outcome:
    """Per scored sample: sums over its tokens of what was measured, how many they are, and where they stand."""

    sample: npt.NDArray[np.int64]
    document: npt.NDArray[np.str_]
    category: npt.NDArray[np.str_]
    count: Floats
    total: Mapping[str, Floats]  # kl, top1, nll and nll_baseline

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Outcome":
        """From the rows that `evals.numbers.sample_rows` makes and a run keeps."""
        count = np.asarray([row["tokens"] for row in rows], dtype=np.float64)
        return cls(
            np.asarray([row["sample"] for row in rows], dtype=np.int64),
            np.asarray([row["document"] for row in rows], dtype=np.str_),
            np.asarray([row["category"] for row in rows], dtype=np.str_),
            count,
            {name: count * np.asarray([row[name] for row in rows], dtype=np.float64) for name in _MEASURES},
        )

    @property
    def clusters(self) -> npt.NDArray[Any]:
        """What resampling draws: documents, or the windows of a single one."""
        return self.document if len(np.unique(self.document)) > 1 else self.sample

    def mean(self, name: str) -> float:
        """The mean over all tokens."""
        return float(self.total[name].sum() / self.count.sum())


def write_outcomes(directory: Path, sequences: Sequences, rows: Sequence[Mapping[str, Any]]) -> Outcomes:
    """Writes the file into `directory`; the same content has the same name."""
    measured = {int(row["sample"]): row for row in rows}
    table = [_row(sequences, number, measured.get(number)) for number in range(len(sequences.samples))]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema=_SCHEMA), sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    path = directory / f"{digest[:16]}.parquet"
    if not path.is_file() or path.read_bytes() != content:
        atomic_write(path, content)
    return Outcomes(file=f"{directory.name}/{path.name}", sha256=digest)


def read_outcomes(lock: Path, outcomes: Outcomes) -> tuple[Sequences, Outcome]:
    """The sequences that were asked and what came out, from the file beside the lock.

    Raises:
        RecordError: the file is missing, or is not the one that was locked.
    """
    path = lock.parent / outcomes.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read ({error.strerror}); it belongs to the lock {lock}: commit and copy both together."
        ) from error
    if hashlib.sha256(content).hexdigest() != outcomes.sha256:
        raise RecordError(f"{path} is not the file that was locked (its hash differs); restore it from git.")
    rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    scored = [{**row, "sample": number} for number, row in enumerate(rows) if row["tokens"] is not None]
    return _sequences(rows), Outcome.of_rows(scored)


def _row(sequences: Sequences, number: int, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    sample = sequences.samples[number]
    row: dict[str, Any] = {
        "document": sample.document,
        "category": sample.category,
        "ids": list(sample.ids),
        "scored": list(sample.scored),
    }
    at = number - sequences.scored
    if at >= 0:
        question = sequences.question[at]
        row |= {"question": question, "option": sequences.option[at], "answer": sequences.answers[question]}
    if measured is not None:
        row |= {"tokens": measured["tokens"], **{name: measured[name] for name in _MEASURES}}
    return row


def _sequences(rows: Sequence[Mapping[str, Any]]) -> Sequences:
    samples = tuple(Sample(tuple(r["ids"]), tuple(r["scored"]), r["category"], r["document"]) for r in rows)
    options = [row for row in rows if row["question"] is not None]
    first = {row["question"]: row for row in reversed(options)}
    asked = [first[number] for number in sorted(first)]
    return Sequences(
        samples=samples,
        scored=len(rows) - len(options),
        question=tuple(row["question"] for row in options),
        option=tuple(row["option"] for row in options),
        answers=tuple(row["answer"] for row in asked),
        categories=tuple(row["category"] for row in asked),
    )
