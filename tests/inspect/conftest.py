"""A tiny random Llama on disk whose weights a test can change before the x-ray sees them."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from subeight.models.model import Model

SHARED = Path(__file__).parents[3] / "shared" / "data" / "models"


@pytest.fixture
def plant(tmp_path):
    """plant(change) -> Model: `change` gets the transformers model, width 64, 2 blocks, 320 tokens."""

    def make(change=lambda model: None):
        config = LlamaConfig(
            vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
            initializer_range=0.05,
        )  # fmt: skip
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            change(model)
        model.save_pretrained(tmp_path / "model")
        return Model(tmp_path / "model")

    return make


@pytest.fixture(scope="session")
def mixture():
    path = SHARED / "moe-stories-8x-1.5M"
    if not path.is_dir():
        pytest.skip("needs ../shared/data/models/moe-stories-8x-1.5M")
    return Model(path)


def tokens(*shape, low=10, high=300, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))
