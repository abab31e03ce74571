"""The installed command in processes of its own: what a shell and a pipe see."""

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).parent / "subeight"


def _subeight(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(COMMAND), *map(str, words)], capture_output=True, text=True, env=environment, timeout=120
    )


def test_the_main_job_in_a_shell(house, tmp_path):
    common = ("--threads", 1, "--dtype", "float32", "--json")
    done = _subeight(tmp_path, "quantize", house.base, "--recipe", house.gptq, "--out", tmp_path / "q", *common)
    assert done.returncode == 0, done.stderr
    quantized = json.loads(done.stdout)
    assert quantized["kind"] == "quantize" and quantized["numbers"]["parity"]["compared"] > 0
    last = done.stderr.splitlines()[-1]
    assert last == f"record {tmp_path / 'q' / 'record.json'} report {tmp_path / 'q' / 'report.html'}"
    evaluation = ("--against", house.base, "--evals", house.evals, "--out", tmp_path / "e")
    done = _subeight(tmp_path, "evaluate", tmp_path / "q", *evaluation, *common)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["coordinates"]["recipe"] == quantized["coordinates"]["recipe"]
    assert measured["numbers"]["kl"] > 0
    assert list((tmp_path / "subeight" / "references").rglob("*.safetensors"))


def test_bad_input_in_a_shell(tmp_path):
    done = _subeight(tmp_path, "quantize", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("subeight: There is no model at")
