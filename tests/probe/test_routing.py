import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.models.model import Model
from subeight.probe.routing import is_mixture, routes
from tests.models.families import FAMILIES, build, save


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return save(build(FAMILIES["mixtral"].config), tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 128, (5, 12), generator=torch.Generator().manual_seed(2))


def test_counts_and_weights_are_those_of_transformers_router_logits(mixtral, ids):
    found = routes(Model(mixtral), ids, dtype=torch.float32, batch=2, quiet=True)
    whole = AutoModelForCausalLM.from_pretrained(mixtral, dtype=torch.float32)
    assert found.counts.shape == found.weights.shape == (5, 8)
    for row in range(5):
        with torch.no_grad():
            logits = whole(input_ids=ids[row][None], output_router_logits=True).router_logits
        for block, scores in enumerate(logits):
            top = scores.double().softmax(-1).topk(2, -1)
            weights = top.values / top.values.sum(-1, keepdim=True)
            for expert in range(4):
                mine = top.indices == expert
                assert found.counts[row, 4 * block + expert] == int(mine.sum())
                assert found.weights[row, 4 * block + expert] == pytest.approx(float(weights[mine].sum()), abs=1e-4)


def test_rows_are_shares_of_the_text_and_of_the_weight(mixtral, ids):
    found = routes(Model(mixtral), ids, dtype=torch.float32, quiet=True)
    rows = found.rows(before=2)
    assert [row["block"] for row in rows] == [0] * 4 + [1] * 4
    assert rows[5]["expert"] == "model.layers.1.block_sparse_moe.experts.1"
    for block in (0, 1):
        mine = [row for row in rows if row["block"] == block]
        assert sum(row["tokens"] for row in mine) == 2 * 60
        assert sum(row["share"] for row in mine) == pytest.approx(2)
        assert sum(row["weight"] for row in mine) == pytest.approx(1)
        assert sum(row["tokens_before"] for row in mine) == 2 * 24
    assert "tokens_before" not in found.rows()[0]


def test_added_sequences_count_with_the_others(mixtral, ids):
    model = Model(mixtral)
    whole = routes(model, ids, dtype=torch.float32, batch=1, quiet=True)
    parts = [routes(model, part, dtype=torch.float32, batch=1, quiet=True) for part in (ids[:2], ids[2:])]
    assert torch.equal(parts[0].followed_by(parts[1], [0, 1, 2]).counts, whole.counts)
    assert torch.equal(parts[0].followed_by(parts[1], [2]).counts, whole.counts[[0, 1, 4]])


def test_only_mixtures_are_mixtures(mixtral, tmp_path):
    assert is_mixture(Model(mixtral))
    assert not is_mixture(Model(save(build(FAMILIES["llama"].config), tmp_path)))
