from pathlib import Path

import pytest
import torch

from subeight.advise.candidates import time_schemes
from subeight.advise.schemes import SCHEMES
from subeight.errors import KernelError
from subeight.models.model import Model
from tests.models.families import FAMILIES, build, save


def test_fused_experts_are_refused_not_timed_dense(tmp_path: Path):
    model = Model(save(build(FAMILIES["mixtral"].config), tmp_path))
    with pytest.raises(KernelError, match="slice of a fused parameter"):
        time_schemes(model, SCHEMES, 8, (1,), torch.float32, torch.device("cpu"))
