"""What changed between two stacks, the most suspicious first."""

from importlib import metadata

import pytest
import torch

from subeight.evals.passes import Computing
from subeight.lock import stacks
from subeight.lock.stacks import changes, distributions, source_hash, stack_today, suspicion_of

STACK = {"python": "3.11.1", "packages": {"torch": "2.13.0", "scipy": None}, "cpu": "x", "cpu_flags": ["avx2"],
         "numerics": {"tf32": False}, "environment": {}}  # fmt: skip


def test_compute_packages_come_first_then_the_machine_then_the_rest():
    after = {**STACK, "packages": {"torch": "2.14.0", "scipy": None}, "cpu_flags": [], "numerics": {"tf32": True}}
    found = changes(STACK, after, {"rich": "15", "numpy": "2.4"}, {"rich": "16", "numpy": "2.5"})
    assert [(c.what, c.suspicion, c.package) for c in found] == [
        ("numpy", "high", True), ("torch", "high", True), ("cpu flag avx2", "medium", False),
        ("numerics.tf32", "medium", False), ("rich", "low", True),
    ]  # fmt: skip
    assert str(found[2]) == "cpu flag avx2: present -> absent"
    assert changes(STACK, STACK, {"a": "1"}, {"a": "1"}, ("x", "x")) == []


def test_own_code_counts_although_the_version_stands_still():
    (found,) = changes(STACK, STACK, sources=("old", "new"))
    assert (found.what, found.package) == ("subeight's own code", False)
    assert source_hash() == source_hash() and len(source_hash()) == 16


def test_what_only_one_side_lists_is_no_change():
    assert changes(STACK, {**STACK, "packages": {"torch": "2.13.0", "scipy": "1.17"}}) == []


@pytest.mark.parametrize("name", ["torch", "nvidia-cublas-cu12", "gptqmodel", "flash-attn", "tokenizers"])
def test_packages_that_compute_are_suspicious(name):
    assert suspicion_of(name) == "high"


def test_a_package_that_runs_at_every_start_is_more_suspicious_than_others(monkeypatch):
    assert suspicion_of("rich") == "low"
    monkeypatch.setattr(stacks.metadata, "files", lambda name: [metadata.PackagePath("fast.pth")])
    assert suspicion_of("fast") == "medium"
    monkeypatch.setattr(stacks.metadata, "files", lambda name: [metadata.PackagePath("__editable__.fast.pth")])
    assert suspicion_of("fast") == "low"


def test_today():
    found = distributions()
    assert found["torch"] == metadata.version("torch") and list(found) == sorted(found)
    stack = stack_today(Computing(torch.bfloat16, torch.device("cpu")))
    assert (stack.dtype, stack.threads) == ("bfloat16", torch.get_num_threads())
