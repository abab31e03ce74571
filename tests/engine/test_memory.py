"""What is gathered at once stays under the limit, and the limit changes nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from subeight.engine import loop
from subeight.models.model import Model
from subeight.models.tap import Gatherer, gather
from tests.engine.test_families import plain_logits, streamed_logits
from tests.engine.tiny import AWQ, AWQ_GPTQ, GPTQ, calibration, hashes, plan_of, quantize, quantize_all
from tests.models.families import COMMON, build, save

Find = Callable[..., Path]
LIMIT = 4 * 64 * 64 * 2  # two Hessians of the models' width


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the Hessians of each tap."""
    found: list[int] = []

    def watched(block, groups, batches, wanted, exact=None, **options):
        found.append(sum(4 * group.width**2 for group in groups) if "hessian" in wanted else 0)
        return gather(block, groups, batches, wanted, exact, **options)

    monkeypatch.setattr(loop, "gather", watched)
    return found


@pytest.mark.parametrize("tap", ["sequential", "parallel", "exact"])
@pytest.mark.parametrize("recipe", [GPTQ, AWQ_GPTQ], ids=["gptq", "awq+gptq"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_chunks_give_the_same_bytes(
    checkpoint: Find, tmp_path: Path, gathered: list[int], family: str, recipe: str, tap: str
) -> None:
    ids, text = calibration(), recipe.replace("TAP", tap)
    quantize(checkpoint(family), text, tmp_path / "whole", ids)
    at_once, taps = max(gathered), len(gathered)
    gathered.clear()
    quantize(checkpoint(family), text, tmp_path / "chunks", ids, max_memory=LIMIT)
    assert hashes(tmp_path / "chunks") == hashes(tmp_path / "whole")
    widest = 4 * 96 * 96  # one group alone may be larger than the limit
    assert max(gathered) <= max(LIMIT, widest)
    if tap != "sequential" or family == "mixtral":
        assert at_once > LIMIT
        assert len(gathered) > taps


def test_recipes_that_share_statistics_keep_to_the_limit(checkpoint: Find, tmp_path: Path, gathered: list[int]) -> None:
    ids, recipes = calibration(), {"gptq": GPTQ.replace("TAP", "exact"), "awq": AWQ_GPTQ.replace("TAP", "exact")}
    for name, options in (("whole", {}), ("chunks", {"max_memory": LIMIT})):
        gathered.clear()
        quantize_all(checkpoint("llama"), [(text, tmp_path / name / n) for n, text in recipes.items()], ids, **options)
    assert max(gathered) <= max(LIMIT, 4 * 96 * 96)
    assert hashes(tmp_path / "chunks") == hashes(tmp_path / "whole")


def test_no_more_than_two_blocks_live_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks there are: what the loop loads it lets go."""
    config = LlamaConfig(**{**COMMON, "num_hidden_layers": 6})
    source = save(build(config), tmp_path / "model")
    alive, most = [0], [0]
    before, after = loop.Block.__init__, getattr(loop.Block, "__del__", None)
    assert after is None

    def made(self, *args, **kwargs) -> None:
        before(self, *args, **kwargs)
        alive[0] += 1
        most[0] = max(most[0], alive[0])

    def gone(self) -> None:
        alive[0] -= 1

    monkeypatch.setattr(loop.Block, "__init__", made)
    monkeypatch.setattr(loop.Block, "__del__", gone, raising=False)
    quantize(source, AWQ, tmp_path / "out", calibration())
    assert most[0] == 2
    assert alive[0] == 0


def test_a_gatherer_holds_only_what_is_wanted() -> None:
    made = Gatherer(8, {"absmax"}, torch.device("cpu"))
    made.add(torch.ones(3, 8))
    stats = made.stats()
    assert stats.hessian is None
    assert stats.absmean is None
    assert torch.equal(stats.absmax, torch.ones(8))


def test_the_head_is_rounded_where_a_rule_names_it(checkpoint: Find, tmp_path: Path) -> None:
    recipe = "{weights: 'int4:g32', methods: [gptq], rules: [{match: lm_head, weights: 'int8:channel'}]}"
    quantize(checkpoint("llama"), recipe, tmp_path / "out", calibration())
    written = Model(tmp_path / "out")
    assert written.codes is not None
    assert str(written.codes.read("lm_head").format) == "int8:channel:sym"
    baseline = Model(checkpoint("llama"))
    error = written.codes.read("lm_head").dequantize() - baseline.weights.read("lm_head.weight")
    assert 0 < float(error.norm() / baseline.weights.read("lm_head.weight").norm()) < 0.02
    ids = calibration(2, 20, seed=9)
    found = streamed_logits(tmp_path / "out", ids)
    torch.testing.assert_close(found, plain_logits(tmp_path / "out", ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("to", ["compressed-tensors", "dense"])
def test_tied_embeddings_stay_tied(tmp_path: Path, to: str) -> None:
    source = save(build(LlamaConfig(**COMMON, tie_word_embeddings=True)), tmp_path / "model")
    quantize(source, AWQ, tmp_path / "out", calibration(), to)
    written = Model(tmp_path / "out")
    assert written.skeleton.tied
    index = (tmp_path / "out" / "model.safetensors.index.json").read_text(encoding="utf-8")
    assert "model.embed_tokens.weight" in index
    assert "lm_head" not in index
    ids = calibration(2, 20, seed=9)
    found = streamed_logits(tmp_path / "out", ids)
    torch.testing.assert_close(found, plain_logits(tmp_path / "out", ids), rtol=1e-3, atol=1e-3)
    assert not any(site.linear.name == "lm_head" for site in plan_of(Model(source), AWQ).quantized)
