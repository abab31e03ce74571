"""Shards where nothing is sharded; with processes they are tested in `tests/verbs/test_train_qat.py`."""

import pytest
import torch

from subeight.train.shards import like, take_over, whole


def test_plain_tensors_stay_what_they_are() -> None:
    value = torch.arange(4.0)
    assert whole(value) is value and like(value, torch.zeros(4)) is value


@pytest.mark.parametrize(("given", "asked"), [("true", True), ("false", False), (None, False)])
def test_the_launch_is_taken_over_once(monkeypatch: pytest.MonkeyPatch, given: str | None, asked: bool) -> None:
    """accelerate would shard again what it still sees asked for."""
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if given is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", given)
    assert take_over() is asked and take_over() is False
