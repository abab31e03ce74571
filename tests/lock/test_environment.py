"""Old packages over today's environment, in real interpreters and without a network."""

import subprocess
import sys
from pathlib import Path

import pytest

from subeight.errors import UndecidedError
from subeight.lock.environment import Environments, found_installers
from tests.lock import fake

INSTALLERS = found_installers()
_ASK = (
    "from importlib import metadata; import fastsilu, pytest; "
    "print(metadata.version('fastsilu'), metadata.version('pytest'), fastsilu.__file__)"
)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """An index of two versions, and nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        fake.wheel(folder, version, code="")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    return folder


@pytest.mark.parametrize("installer", INSTALLERS or ["none"], ids=lambda path: Path(path).name)
def test_an_old_version_hides_todays_and_everything_else_is_seen(wheels, tmp_path, installer):
    if not INSTALLERS:
        pytest.skip("neither uv nor pip is installed, so no old package can be installed")
    made = Environments(tmp_path / "root", (installer,))
    for version in ("1.0", "2.0"):
        assert made.fetch("fastsilu", version) is None
        python = made.python({"fastsilu": version})
        done = subprocess.run([str(python), "-c", _ASK], capture_output=True, text=True)
        assert done.stdout.split()[:2] == [version, pytest.__version__], done.stderr
        assert str(tmp_path) in done.stdout
    reason = made.fetch("fastsilu", "3.0")
    assert reason is not None and Path(installer).name in reason
    assert subprocess.run([sys.executable, "-c", "import fastsilu"], capture_output=True).returncode != 0


def test_without_an_installer_it_is_said(tmp_path):
    made = Environments(tmp_path, ())
    assert made.fetch("x", "1") == "neither uv nor pip is there to install it"
    with pytest.raises(UndecidedError, match="was not installed"):
        made.python({"x": "1"})
