"""The Stack fingerprint moves with what can change a number, and with nothing else."""

import ast
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

import subeight.records
from subeight.records import Stack, difference, human_bytes, peak_rss_bytes, stack

CPUINFO = """processor\t: 0
model name\t: Test(R) CPU @ 2.0GHz
flags\t\t: fpu sse4_2 avx2 avx512f amx_bf16 secret_flag

processor\t: 1
model name\t: Another
"""


def test_today_is_stable_and_complete():
    one, two = (Stack.today(2, "cpu", {"tf32": False}, dtype="bfloat16") for _ in range(2))
    assert one == two and one.hash == two.hash and len(one.hash) == 16
    assert one.packages["torch"] == metadata.version("torch")
    assert one.packages["numpy"] == metadata.version("numpy")
    assert one.cpu and one.platform.split()[0] in {"Linux", "Darwin"}
    assert set(one.contents()) == {
        "python", "platform", "packages", "cpu", "cpu_flags", "threads", "device", "dtype", "gpu", "numerics",
        "environment",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 3}, {"device": "cuda"}, {"dtype": "float32"}, {"gpu": {"name": "H100", "driver": "570"}},
        {"numerics": {"tf32": True}}, {"cpu_flags": ("avx2",)}, {"packages": {"torch": "9.9"}},
        {"environment": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, {"python": "3.99.0"},
    ],
)  # fmt: skip
def test_every_part_moves_the_hash_and_is_named(change):
    base = Stack.today(2)
    changed = replace(base, **change)
    assert changed.hash != base.hash
    lines = difference(base, changed)
    (name,) = change
    shown = {"packages": "torch: ", "cpu_flags": "cpu flag "}.get(name, name)
    assert lines and any(line.startswith(shown) for line in lines)
    assert difference(base, base) == []


def test_difference_reads_stored_contents_and_says_old_and_new():
    base = Stack.today(2)
    older = base.contents()
    older["packages"] = {**older["packages"], "torch": "1.0", "triton": None}
    newer = {**base.contents(), "packages": {**base.packages, "torch": "2.0", "triton": "3.1"}}
    assert difference(older, newer) == ["torch: 1.0 -> 2.0", "triton: absent -> 3.1"]


def test_the_environment_is_observed(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("HOME", "/nowhere")
    assert Stack.today(1).environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "HOME" not in Stack.today(1).environment


def test_cpuinfo_is_read_for_name_and_known_flags():
    assert stack._parse_cpuinfo(CPUINFO) == (
        "Test(R) CPU @ 2.0GHz",
        ("sse4_2", "avx2", "avx512f", "amx_bf16"),
    )
    assert stack._parse_cpuinfo("Features : asimd bf16 x\n")[1] == ("asimd", "bf16")


def test_peak_memory_grows_with_what_is_touched():
    before = peak_rss_bytes()
    block = bytearray(b"x") * 300_000_000
    assert peak_rss_bytes() >= before + 100_000_000 or before > 500_000_000
    del block
    assert 10_000_000 < before < 10**12


def test_sizes_are_said_as_people_say_them():
    assert [human_bytes(n) for n in (0, 999, 98_300_000, 3e9)] == [
        "0 bytes",
        "999 bytes",
        "98.3 MB",
        "3.0 GB",
    ]


@pytest.mark.parametrize("room", ["records", "report"])
def test_the_room_imports_no_torch(room):
    for file in (Path(subeight.records.__file__).parents[1] / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"torch", "transformers"}, file
            assert not any(n.startswith("subeight.") and n.split(".")[1] not in (room, "records", "errors")
                           for n in names), file  # fmt: skip
