"""The bias of forced calibration against plain float64 sums; experts that read all tokens have none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.routing import run_routed
from subeight.models.shell import Shell
from subeight.probe.forcing import forced_bias
from tests.models.families import FAMILIES, build, save


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build(FAMILIES["mixtral"].config), tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 128, (5, 20), generator=torch.Generator().manual_seed(3))


def moments(rows: np.ndarray) -> np.ndarray:
    """Token by token: each counts one over its root mean square, as the nearest power of two."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows:
        total += 2.0 ** -np.round(np.log2(np.sqrt((row**2).mean()))) * np.outer(row, row)
    return total / np.diag(total).mean()


def test_it_is_what_float64_sums_say(mixtral: Path, ids: torch.Tensor) -> None:
    model = Model(mixtral)
    found = forced_bias(model, ids, dtype=torch.float32, batch=2, quiet=True)
    shell, block = Shell(model, torch.float32), Block(model, 0, torch.float32)
    _, routing = run_routed(block, shell.embed(ids), shell.call(tuple(ids.shape), 0))
    read = routing.inputs.double().numpy()
    for number in range(4):
        own = moments(read[(routing.chosen == number).any(1).numpy()])
        expected = np.linalg.norm(moments(read) - own) / np.linalg.norm(own)
        assert found[f"model.layers.0.block_sparse_moe.experts.{number}"] == pytest.approx(expected, rel=1e-4)
        assert expected > 0.05
    assert len(found) == 8


def test_an_expert_that_gets_all_tokens_has_none_and_one_that_gets_nothing_is_unknown(
    mixtral: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    made = build(FAMILIES["mixtral"].config)
    with torch.no_grad():
        for layer in made.model.layers:
            layer.post_attention_layernorm.weight.copy_(torch.ones(64))
            layer.mlp.gate.weight.zero_()  # all scores are equal: the first two are chosen, always
    found = forced_bias(Model(save(made, tmp_path / "all")), ids, dtype=torch.float32, quiet=True)
    values = list(found.values())[:4]
    assert sorted(value for value in values if value is not None) == [0.0, 0.0]
    assert values.count(None) == 2
