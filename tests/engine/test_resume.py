"""Killed at any moment, the same command continues, and no file differs from an uninterrupted run's."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from subeight.engine import loop, streams
from tests.engine.tiny import GPTQ, calibration, hashes, quantize
from tests.verbs.small import save_llama, write_recipe, write_text

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("record.json", "report.html")  # these say how long it took
RECIPE = """
name: killed
weights: int4:g32:sym
methods: [awq, gptq]
tap: TAP
calibration: {source: TEXT, sequences: 12, length: 48, seed: 0}
"""
# One line for each phase: the function at whose call the process dies, which call, and whether before or after it.
PHASES: dict[str, tuple[str, int, str]] = {
    "nothing": ("subeight.verbs.quantize:planned", 1, "before"),
    "the marker of the run, not yet renamed": ("pathlib:Path.replace", 1, "before"),
    "embedding": ("subeight.models.shell:Shell.embed", 2, "before"),
    "first tap": ("subeight.engine.loop:gather", 1, "before"),
    "last tap": ("subeight.engine.loop:gather", 10, "before"),
    "move of the first block": ("subeight.models.folds:apply", 2, "before"),
    "move of the last block": ("subeight.engine.lane:move_block", 2, "after"),
    "first rounding": ("subeight.engine.lane:round_group", 1, "after"),
    "the first shard, not yet renamed": ("subeight.export.checkpoint:publish", 1, "before"),
    "the first shard, renamed": ("subeight.export.checkpoint:publish", 1, "after"),
    "the last block's shard, not yet renamed": ("subeight.export.checkpoint:publish", 2, "before"),
    "within the advance": ("subeight.models.block:Block.__call__", 11, "after"),
    "after the advance": ("subeight.engine.streams:STREAM.advance", 1, "after"),
    "after the last block": ("subeight.engine.streams:STREAM.close", 1, "before"),
    "shell": ("subeight.engine.lane:shell_tensors", 1, "after"),
    "finish": ("subeight.export.checkpoint:ShardWriter.finish", 1, "before"),
    "the config, not yet renamed": ("subeight.export.checkpoint:publish", 9, "before"),
    "parity": ("subeight.verbs.quantize:verified", 1, "before"),
    "record": ("subeight.records.run:Run.write_record", 1, "before"),
    "report": ("subeight.verbs.quantize:finish", 1, "after"),
}
STREAMED = ("embedding", "first rounding", "the first shard, renamed", "within the advance", "parity")
ONLY_ON_DISK = {
    "activations written, not yet called whole": ("subeight.engine.streams:atomic_write", 2, "before"),
    "activations of two blocks on the disk": ("subeight.engine.streams:atomic_write", 2, "after"),
    "activations half removed": ("subeight.engine.streams:shutil.rmtree", 3, "before"),
}


@dataclass(frozen=True)
class Bench:
    """A tiny model with its recipe, and what an uninterrupted run writes and how long it takes."""

    model: Path
    recipe: Path
    whole: dict[str, str]
    seconds: float

    def argv(self, out: Path, *more: str) -> list[str]:
        options = ["--recipe", str(self.recipe), "--out", str(out), "--threads", "1", "--quiet", *more]
        return ["quantize", str(self.model), *options]


class Killer:
    """The process that carries out orders, see `killer.py`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.engine.killer"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.process.communicate(timeout=60)
    assert made.process.returncode == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


def make_bench(killer: Killer, model: Path, home: Path, tap: str) -> Bench:
    text = write_text(home / "text.txt", words=1500)
    recipe = write_recipe(home / "recipe.yaml", RECIPE.replace("TAP", tap), text)
    unmeasured = Bench(model, recipe, {}, 0.0)
    results = [killer({"argv": unmeasured.argv(home / name)}) for name in ("whole", "again")]
    assert [result["status"] for result in results] == [0, 0]
    whole = hashes(home / "whole", TIMES)
    assert sum(name.endswith(".safetensors") for name in whole) == 3
    assert hashes(home / "again", TIMES) == whole
    return Bench(model, recipe, whole, results[1]["seconds"])


@pytest.fixture(scope="module")
def bench(killer: Killer, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(killer, model, tmp_path_factory.mktemp("sequential"), "sequential")


def check(
    killer: Killer, bench: Bench, directory: Path, deaths: dict[str, dict[str, Any]], *, on_disk: bool, ended: int = 0
) -> None:
    """Each death in a directory of its own, then the same command again; at most `ended` came too late to kill."""
    died, resumed = {}, {}
    for number, (name, death) in enumerate(deaths.items()):
        more = ["--scratch", str(directory / f"scratch-{number}")] if on_disk else []
        command = bench.argv(directory / f"out-{number}", *more)
        died[name], resumed[name] = killer({"argv": command, **death}), killer({"argv": command})
    late = [name for name, how in died.items() if not how["killed"]]
    assert len(late) <= ended, f"nothing was killed: {late}"
    for number, name in enumerate(deaths):
        assert resumed[name]["status"] == 0, f"{name}: the same command again said {resumed[name]['said']}"
        assert hashes(directory / f"out-{number}", TIMES) == bench.whole, name
        if on_disk:
            left = list((directory / f"scratch-{number}").rglob("*"))
            assert not [path for path in left if path.is_file()], f"{name}: {left} was left behind"


def deaths_in(phases: dict[str, tuple[str, int, str]], stream: str) -> dict[str, dict[str, Any]]:
    return {
        phase: {"name": name.replace("STREAM", stream), "call": call, "when": when}
        for phase, (name, call, when) in phases.items()
    }


def test_killed_in_every_phase(killer: Killer, bench: Bench, tmp_path: Path) -> None:
    check(killer, bench, tmp_path, deaths_in(PHASES, "MemoryStream"), on_disk=False)


def test_killed_with_activations_on_disk(killer: Killer, bench: Bench, tmp_path: Path) -> None:
    phases = {phase: PHASES[phase] for phase in STREAMED} | ONLY_ON_DISK
    check(killer, bench, tmp_path, deaths_in(phases, "DiskStream"), on_disk=True)


def test_killed_with_shared_activations_on_disk(killer: Killer, model: Path, tmp_path: Path) -> None:
    bench = make_bench(killer, model, tmp_path, "exact")
    phases = {phase: PHASES[phase] for phase in ("the first shard, renamed", "after the advance")} | ONLY_ON_DISK
    check(killer, bench, tmp_path, deaths_in(phases, "DiskStream"), on_disk=True)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_killed_at_seeded_times(killer: Killer, bench: Bench, tmp_path: Path, on_disk: bool) -> None:
    generator = Random(20 + on_disk)
    share = [(number + generator.random()) / 10 for number in range(10)]  # one in each tenth of the run
    deaths = {f"{at:.2f}": {"at": at * bench.seconds} for at in share}
    check(killer, bench, tmp_path, deaths, on_disk=on_disk, ended=3)  # a busy machine may have measured too long a run


def test_a_process_of_its_own_is_killed_and_loaded_again_at_the_end(bench: Bench, tmp_path: Path) -> None:
    """The real command line, its parity check included."""
    command = [sys.executable, "-m", "subeight.cli.main", *bench.argv(tmp_path / "out", "--json")]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("model-00001-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "config.json").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert hashes(tmp_path / "out", TIMES) == bench.whole
    parity = json.loads(again.stdout)["numbers"]["parity"]
    assert 0 <= parity["max_abs"] <= parity["bound"]


def test_activations_of_other_text_are_not_taken_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run leaves its activations in --scratch; a run on other text must not continue from them."""
    recipe, scratch = GPTQ.replace("TAP", "sequential"), tmp_path / "scratch"
    with monkeypatch.context() as patched:
        patched.setattr(streams.DiskStream, "advance", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, recipe, tmp_path / "killed", calibration(seed=1), scratch=scratch)
    assert list(scratch.rglob("*.safetensors"))
    quantize(model, recipe, tmp_path / "found", calibration(seed=2), scratch=scratch)
    quantize(model, recipe, tmp_path / "expected", calibration(seed=2))
    assert hashes(tmp_path / "found") == hashes(tmp_path / "expected")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_finished_blocks_are_not_run_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = GPTQ.replace("TAP", "sequential")
    quantize(model, recipe, tmp_path / "out", calibration())
    before = hashes(tmp_path / "out")
    monkeypatch.setattr(loop, "Block", _interrupted)
    quantize(model, recipe, tmp_path / "out", calibration())
    assert hashes(tmp_path / "out") == before


def _until_block_1(function: Callable[..., None]) -> Callable[..., None]:
    def interrupted(lane: Any, block: Any, *args: Any, **kwargs: Any) -> None:
        if block.index == 1:
            raise KeyboardInterrupt
        function(lane, block, *args, **kwargs)

    return interrupted


@pytest.mark.parametrize("tap", ["sequential", "exact"])
def test_activations_on_disk_are_resumed_not_made_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: str
) -> None:
    recipe, scratch = GPTQ.replace("TAP", tap), tmp_path / "scratch"
    with monkeypatch.context() as patched:
        patched.setattr(loop.Lane, "quantize", _until_block_1(loop.Lane.quantize))
        with pytest.raises(KeyboardInterrupt):
            quantize(model, recipe, tmp_path / "out", calibration(), scratch=scratch)
    monkeypatch.setattr(loop, "embedded", _interrupted)
    quantize(model, recipe, tmp_path / "out", calibration(), scratch=scratch)
    monkeypatch.undo()
    quantize(model, recipe, tmp_path / "expected", calibration())
    assert hashes(tmp_path / "out") == hashes(tmp_path / "expected")
    assert not list(scratch.rglob("*.safetensors"))
