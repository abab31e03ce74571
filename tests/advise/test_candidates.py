from pathlib import Path

import pytest
import torch

from subeight.advise.candidates import HEAD, Timing, time_schemes
from subeight.advise.schemes import SCHEMES
from subeight.errors import KernelError
from subeight.models.model import Model
from tests.models.families import FAMILIES, build, save


def test_fused_experts_are_refused_not_timed_dense(tmp_path: Path):
    model = Model(save(build(FAMILIES["mixtral"].config), tmp_path))
    with pytest.raises(KernelError, match="slice of a fused parameter"):
        time_schemes(model, SCHEMES, 8, (1,), torch.float32, torch.device("cpu"))


def test_the_whole_is_the_head_what_is_no_block_and_every_block(tmp_path: Path):
    timing = Timing(
        Model(save(build(FAMILIES["llama"].config), tmp_path)), SCHEMES[0], torch.float32, torch.device("cpu")
    )
    timing.sample(8, (1, 2))
    assert {key for key in timing.samples if key[0] == HEAD} == {(HEAD, 1, False), (HEAD, 2, False)}
    timing.layers = 10
    for key in timing.samples:
        timing.samples[key] = [{HEAD: 5.0, 1: 2.0, 2: 3.0}[key[0]] * (100 if key[2] else key[1])] * 3
    found = timing.measured(8, (1, 2))
    assert found.decode == {1: 5 + 2 + 9, 2: 2 * (5 + 2 + 9)}
    assert found.prefill == 5 + 100 * (2 + 9)
