"""What a worker keeps: the baseline, and one other model at a time."""

import gc
import weakref
from pathlib import Path

import torch

from subeight.evals.passes import Computing
from subeight.map.work import ALL, MapJob, State, Task
from subeight.models.model import Model
from subeight.text import evaluate_set
from tests.verbs.small import save_llama, write_text


def test_one_other_model_at_a_time(tmp_path: Path) -> None:
    path = str(save_llama(tmp_path / "llama"))
    text = evaluate_set(str(write_text(tmp_path / "text.txt", words=40)), Model(path).tokenizer(), window=24)
    computing = Computing(torch.float32, torch.device("cpu"), quiet=True)
    state = State(MapJob(path, (path, path), (None, None), (), (text,), computing))
    exact = state.bench(Task("damage", 0, ALL, ()))
    first = weakref.ref(state.bench(Task("rescue", 0, ALL, (), format=0)))
    assert first() is state.bench(Task("rescue", 0, ALL, (), format=0))
    state.bench(Task("rescue", 0, ALL, (), format=1))
    gc.collect()
    assert first() is None, "the first candidate's blocks and states are free"
    assert state.bench(Task("damage", 0, ALL, ())) is exact
