import math

import numpy as np
import pytest
import torch

from subeight.advise.kv import Loaded, Reference, Text, measure, reference
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model
from subeight.text.needles import Needle
from tests.models.conftest import checkpoint  # noqa: F401 - a fixture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(request) -> Loaded:
    find = request.getfixturevalue("checkpoint")
    return Loaded.of("full", Model(find("llama")), torch.float32, CPU)


@pytest.fixture(scope="module")
def text() -> Text:
    draw = torch.Generator().manual_seed(2)
    windows = [torch.randint(0, 128, (300,), generator=draw) for _ in range(2)]
    return Text(300, windows, [Needle(tuple(windows[0].tolist()), 298, 300, 0.5, 1)], 8)


@pytest.fixture(scope="module")
def known(base, text) -> Reference:
    return reference(base, text)


def test_the_full_policy_loses_nothing(base, text, known):
    found = measure(base, base, KVPolicy(), text, known)
    assert found["kl"] == 0 and found["agreement"] == 1 and found["kl_ci"] == [0, 0]
    logits = torch.stack([base.module(input_ids=window[None]).logits[0] for window in text.windows])
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.stack(list(text.windows))[:, 1:].flatten()
    )
    assert found["ppl"] == pytest.approx(math.exp(float(nll)), rel=1e-5)


def test_kl_is_that_of_the_logits_under_the_cache(base, text, known):
    policy = KVPolicy.parse("int2:g16,window=32,sinks=0")
    found = measure(base, base, policy, text, known)
    losses = []
    for window in text.windows:
        full = base.module(input_ids=window[None]).logits[0].double().log_softmax(-1)
        cache = base.cache(policy)
        outputs = [
            base.module(input_ids=part[None], past_key_values=cache, use_cache=True)
            for part in window.split(text.chunk)
        ]
        low = torch.cat([output.logits[0] for output in outputs]).double().log_softmax(-1)
        losses.append((full.exp() * (full - low)).sum(-1)[:-1].detach().numpy())
    flat = np.concatenate(losses)
    assert found["kl"] == pytest.approx(flat.mean(), rel=1e-3)
    firsts = [part["mean"] for part in found["kl_by_place"]]
    assert firsts[0] == pytest.approx(np.mean([one[:75].mean() for one in losses]), abs=1e-6)
    assert firsts[0] < firsts[-1] and 0 <= found["agreement"] <= 1
    assert found["cache_bytes"] < measure(base, base, KVPolicy(), text, known)["cache_bytes"]
    assert found["retrieval"]["cells"] == [{"numbers": 1, "depth": 0.5, "found": 0, "asked": 1}]
