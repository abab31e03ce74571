"""A pass by many: the states of one process, whatever order the batches come back in."""

import dataclasses
import pickle

import pytest
import torch

from subeight.evals.passes import Sequences, run_pass
from subeight.evals.spread import PassJob, packed, spread_pass, unpacked
from subeight.models.model import Model
from subeight.sweep import hire
from subeight.text import batches
from tests.verbs import small


class Backwards:
    """A crew that gives its last answer first."""

    def __init__(self, job: PassJob) -> None:
        self._job = job

    def run(self, tasks, done) -> None:
        state = self._job.prepare()
        for number, task in reversed(list(enumerate(tasks))):
            # both travel between processes
            done(number, pickle.loads(pickle.dumps(self._job.answer(state, pickle.loads(pickle.dumps(task))))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_crew_gives_the_states_of_one_process(pair, plain, texts, tmp_path, dtype) -> None:
    computing = dataclasses.replace(plain, dtype=dtype, max_memory=2000, scratch=tmp_path)
    model = Model(pair[0])
    listed = batches(Sequences.of(texts(small.text_rows(8))).samples, 64)
    assert len(listed) > 3
    expected = run_pass(model, listed, computing, "")
    job = PassJob(computing, torch.get_num_threads())
    with hire(job) as alone:
        for crew in (alone, Backwards(job)):
            found = spread_pass(crew, model, listed, computing, "")
            assert all(torch.equal(a, b) for a, b in zip(found.hidden, expected.hidden, strict=True))
            assert torch.equal(found.head(found.hidden[0]), expected.head(expected.hidden[0]))


def test_a_tensor_survives_the_way() -> None:
    for value in (torch.randn(3, 4).to(torch.bfloat16), torch.zeros(0, 4), torch.randn(4, 3).T):
        found = unpacked(packed(value))
        assert torch.equal(found, value) and found.dtype == value.dtype
