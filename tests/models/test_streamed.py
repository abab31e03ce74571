"""What a model answers from disk is what it answers loaded whole, to the last token and the last bit."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.streamed import Streamed, cache_bytes, writer_of
from subeight.models.whole import Whole

PROMPTS = [[3, 5, 7, 11, 2, 9], [8, 1], [4, 4, 4]]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    # two kinds of layers with their own masks, and a soft cap on the logits
    "gemma2": Gemma2Config(**SIZES, sliding_window=4, final_logit_softcapping=5.0),
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    directory: Path = tmp_path_factory.mktemp(request.param)
    made = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    for parameter in made.parameters():
        parameter.data.mul_(4.0)  # or every answer is the same token
    made.save_pretrained(directory)
    return Model(directory)


def streamed(model: Model, dtype: torch.dtype, room: int = 1 << 30) -> Streamed:
    return Streamed(model, Shell(model, dtype), room=room)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answers_are_those_of_the_whole_model(model: Model, dtype: torch.dtype) -> None:
    expected = Whole(model, dtype).greedy(PROMPTS, 12, set())
    assert len({tuple(answer) for answer in expected}) == 3 and len(set(expected[0])) > 1
    assert streamed(model, dtype).greedy(PROMPTS, 12, set()) == expected
    # caches of one prompt at a time
    assert streamed(model, dtype, room=cache_bytes(model, dtype)).greedy(PROMPTS, 12, set()) == expected


def test_an_answer_ends_where_it_stops(model: Model) -> None:
    stop = {Whole(model, torch.float32).greedy(PROMPTS, 12, set())[0][3]}
    found = streamed(model, torch.float32).greedy(PROMPTS, 12, stop)
    assert found == Whole(model, torch.float32).greedy(PROMPTS, 12, stop)
    assert len(found[0]) <= 3
    assert streamed(model, torch.float32).greedy([], 12, stop) == []


def test_samples_are_those_of_the_whole_model(model: Model) -> None:
    ids = torch.tensor([[1], [2], [3]])
    drawn = []
    for writer in (Whole(model, torch.float32), streamed(model, torch.float32)):
        steps = writer.sample(ids, torch.Generator().manual_seed(0))
        drawn.append(torch.cat([next(steps) for _ in range(10)], 1))
    assert torch.equal(*drawn)


def test_only_what_does_not_fit_is_streamed(model: Model) -> None:
    needed = 4 * sum(parameter.numel() for parameter in model.skeleton.model.parameters())
    assert isinstance(writer_of(model, torch.float32, "cpu", needed), Whole)
    assert isinstance(writer_of(model, torch.float32, "cpu", needed - 1), Streamed)
