"""Run directories: whole files or none, resumed by the same command, refused to any other."""

import errno
import stat

import numpy as np
import pytest

from subeight.errors import OutputError, RecordError
from subeight.records import (
    Coordinates,
    Record,
    Run,
    atomic_path,
    atomic_write,
    default_directory,
    files,
    require_space,
)


def record(kind="evaluate", **numbers):
    return Record(kind=kind, coordinates=Coordinates(), numbers=numbers)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_default_directory_is_stable_and_safe():
    first = default_directory("quantize", "org/Some Model v1.gguf", {"recipe": "x", "seed": 0})
    assert first == default_directory("quantize", "org/Some Model v1.gguf", {"seed": 0, "recipe": "x"})
    assert first != default_directory("quantize", "org/Some Model v1.gguf", {"recipe": "y", "seed": 0})
    assert first.parts[0] == "runs" and first.name.startswith("quantize-Some-Model-v1-")
    for hostile in ("../../etc/passwd", "..", "<script>alert(1)</script>", "a" * 500, "C:\\x\\y", "/"):
        name = default_directory("inspect", hostile, 0).name
        assert name.startswith("inspect-") and len(name) < 80 and not set(name) & set("/\\<>() ")


def test_records_and_samples_come_back(tmp_path):
    run = Run.create(tmp_path / "new" / "run", "compare")
    run.write_record(record(kl=1.0))
    run.write_record(record("quantize", bytes=5), name="gptq-int4")
    run.write_samples([{"id": 0, "kl": 0.5}, {"id": 1, "note": "late column"}])
    run.write_samples({"kl": np.array([0.25, 0.5], dtype=np.float32)}, name="tokens")
    run.write_samples([], name="none")
    again = Run.open(run.directory)
    assert again.verb == "compare" and again.read().numbers == {"kl": 1.0}
    assert [r.kind for r in again.records()] == ["evaluate", "quantize"]
    rows = again.read_samples()
    assert rows == [{"id": 0, "kl": 0.5, "note": None}, {"id": 1, "kl": None, "note": "late column"}]
    assert again.read_samples("tokens") == [{"kl": 0.25}, {"kl": 0.5}]
    assert again.read_samples("none") == []
    with pytest.raises(RecordError, match="kept no samples"):
        again.read_samples("other")


def test_samples_are_the_same_bytes_every_time(tmp_path):
    paths = [Run.create(tmp_path / n, "x").write_samples([{"kl": 0.1, "text": "ä"}]) for n in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 200])
def test_names_cannot_leave_the_directory(tmp_path, name):
    with pytest.raises(RecordError, match="cannot name a file"):
        Run.create(tmp_path, "x").write_record(record(), name=name)


def test_the_same_run_resumes_and_sweeps_what_a_crash_left(tmp_path):
    run = Run.create(tmp_path, "quantize", {"recipe": "a"})
    run.write_record(record())
    (tmp_path / "checkpoint").mkdir()
    stray = tmp_path / "checkpoint" / ".shard.safetensors.0123abcd.partial"
    stray.write_text("half")
    assert Run.create(tmp_path, "quantize", {"recipe": "a"}) == run
    assert not stray.exists() and (tmp_path / "record.json").exists()


def test_a_start_that_crashed_before_its_marker_is_taken_over(tmp_path):
    (tmp_path / ".run.json.0123abcd.partial").write_text("{")
    Run.create(tmp_path, "inspect")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_anything_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds something else \(thesis.tex\)"):
        Run.create(tmp_path, "quantize")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match="is a file"):
        Run.create(tmp_path / "thesis.tex", "quantize")
    with pytest.raises(RecordError, match="not a run directory"):
        Run.open(tmp_path)


def test_another_run_is_refused(tmp_path):
    Run.create(tmp_path, "quantize", {"recipe": "a"})
    with pytest.raises(OutputError, match="holds a run of `quantize`, not of `inspect`"):
        Run.create(tmp_path, "inspect")
    with pytest.raises(OutputError, match="another model, recipe or settings"):
        Run.create(tmp_path, "quantize", {"recipe": "b"})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(OutputError, match="damaged"):
        Run.create(tmp_path, "quantize", {"recipe": "a"})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = atomic_write(tmp_path / "x.json", "old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half of the new")
        raise RuntimeError
    assert target.read_text() == "old" and names(tmp_path) == ["x.json"]
    atomic_write(target, b"new")
    assert target.read_text() == "new" and names(tmp_path) == ["x.json"]


def test_the_data_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(files, "_sync", lambda path: events.append(("sync", path.name.split(".")[-1])))
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda a, b: events.append(("rename", "")) or replace(a, b))
    atomic_write(tmp_path / "x", "data")
    assert [event for event, _ in events] == ["sync", "rename", "sync"] and events[0][1] == "partial"


def test_file_modes_follow_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(atomic_write(tmp_path / "x", "y").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(tmp_path, code):
    with pytest.raises(OutputError, match="no space left"), atomic_path(tmp_path / "x"):
        raise OSError(code, "full")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_places_stay_themselves(tmp_path):
    with pytest.raises(PermissionError), atomic_path(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "denied", "/elsewhere/input.txt")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "below.json", "x")


def test_space_is_asked_for_beforehand(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(OutputError, match=r"needs 1000000\.0 TB, and its disk has .* free") as error:
        require_space(tmp_path / "x", 10**18)
    assert "\n" not in str(error.value)
