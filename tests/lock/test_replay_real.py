"""A package whose new version changes the result, in real environments: the old is rebuilt, the package named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from subeight.lock.environment import Environments, found_installers
from tests.lock import fake
from tests.verbs import small

_PREPARE = """
import sys
from pathlib import Path
from subeight import Options, evaluate, lock, quantize
from subeight.export import Parity
from subeight.verbs import parity

parity.check = lambda *a, **k: Parity(max_abs=0.0, bound=1.0, tokens=0, compared=0)
folder = Path(sys.argv[1])
given = {"threads": 1, "quiet": True, "dtype": "float32", "evals": (str(folder / "evals.jsonl"),)}
quantize(str(folder / "base"), str(folder / "rtn.yaml"), options=Options(out=folder / "int3", **given))
evaluate(str(folder / "int3"), str(folder / "base"), options=Options(out=folder / "run", **given))
lock(str(folder / "run"), options=Options(out=folder / "subeight.lock", **given))
"""


@pytest.fixture
def environments(tmp_path, monkeypatch):
    """Last month's environment and today's: two packages went from 1.0 to 2.0, one of them changes an activation."""
    if not found_installers():
        pytest.skip("neither uv nor pip is installed, so no old stack can be rebuilt")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    made = Environments(tmp_path / "environments")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for version in ("1.0", "2.0"):
        fake.wheel(wheels, version)
        fake.wheel(wheels, version, name="bystander", code="")
        for name in (fake.NAME, "bystander"):
            assert made.fetch(name, version) is None
    return [made.python({fake.NAME: version, "bystander": version}) for version in ("1.0", "2.0")]


def _house(folder):
    small.save_llama(folder / "base", num_hidden_layers=1)
    small.write_rows(folder / "evals.jsonl", small.text_rows(30, words=8))
    small.write_recipe(folder / "rtn.yaml", small.RTN)


def _run(python, *words):
    done = subprocess.run([str(python), *map(str, words)], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_package_that_changed_the_result_is_named(environments, tmp_path):
    _house(tmp_path)
    old, new = environments
    assert _run(old, "-c", _PREPARE, tmp_path).returncode == 0
    verify = ("-m", "subeight.cli.main", "verify", tmp_path / "int3", "--lock", tmp_path / "subeight.lock", "--json")
    done = _run(new, *verify, "--replay", "--out", tmp_path / "verified")
    numbers = json.loads(done.stdout)["numbers"]
    assert done.returncode in {1, 3} and numbers["verdict"] != "pass"
    assert {change["what"]: change["after"] for change in numbers["changes"]} == {fake.NAME: "2.0", "bystander": "2.0"}
    replay = numbers["replay"]
    assert [[change["what"] for change in group] for group in replay["guilty"]] == [[fake.NAME]]
    assert replay["share"] == replay["left"] == 0.0
    assert f"{fake.NAME} (1.0 -> 2.0) is guilty" in done.stderr
    assert "the locked result is reproduced" in done.stderr
