"""Throw-away environments in which some packages have the version that they had, over everything of today's.

Each package is installed once, alone, into a directory of its own; an environment is an empty venv whose one .pth file
adds those directories first and today's site-packages after them. `uv` installs, pip where there is no uv.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from subeight.errors import UndecidedError

_SECONDS = 1800  # for one package, torch included
_PTH = "subeight_replay.pth"


@dataclass
class Environments:
    """Environments below `root`, which the caller removes; `installers` are tried in turn."""

    root: Path
    installers: tuple[str, ...] = field(default_factory=lambda: found_installers())
    _made: int = 0

    def fetch(self, package: str, version: str) -> str | None:
        """Installs one package into its own directory; returns why that cannot be, else None."""
        target = self._store(package, version)
        if target.is_dir():
            return None
        if not self.installers:
            return "neither uv nor pip is there to install it"
        reason = ""
        for installer in self.installers:
            done = subprocess.run(
                _install(installer, target, f"{package}=={version}"), capture_output=True, text=True, timeout=_SECONDS
            )
            if done.returncode == 0:
                return None
            shutil.rmtree(target, ignore_errors=True)
            reason = reason or f"{Path(installer).name}: {_last_line(done.stderr)}"
        return reason

    def python(self, pins: Mapping[str, str]) -> Path:
        """The interpreter of a fresh environment in which these packages have these versions."""
        self._made += 1
        home = self.root / f"environment-{self._made}"
        venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(home)
        paths = sysconfig.get_paths(scheme="venv", vars={"base": str(home), "platbase": str(home)})
        folders = [self._store(package, version) for package, version in sorted(pins.items())]
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        if missing:
            raise UndecidedError(f"{', '.join(missing)} was not installed, so this environment cannot be made.")
        lines = [f"import site; site.addsitedir({str(folder)!r})" for folder in [*folders, *_today()]]
        purelib = Path(paths["purelib"])
        (purelib / _PTH).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Path(paths["scripts"]) / Path(sys.executable).name

    def _store(self, package: str, version: str) -> Path:
        return self.root / "packages" / f"{package}-{version}"


def found_installers() -> tuple[str, ...]:
    """`uv`, beside this interpreter or on the path, and pip where this interpreter has it."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0
    return tuple(filter(None, (uv, "pip" if has_pip else None)))


def _install(installer: str, target: Path, wanted: str) -> list[str]:
    if installer != "pip":
        return [installer, "pip", "install", "--python", sys.executable, "--no-deps", "--target", str(target), wanted]
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), wanted]
    # What a user tells uv holds for pip in its place.
    for name, option in (("UV_FIND_LINKS", "--find-links"), ("UV_INDEX_URL", "--index-url")):
        if os.environ.get(name):
            command += [option, os.environ[name]]
    return [*command, "--no-index"] if os.environ.get("UV_NO_INDEX") in ("1", "true") else command


def _today() -> list[str]:
    """The directories of this interpreter that hold installed packages, in their order."""
    known, endings = {*site.getsitepackages(), site.getusersitepackages()}, ("site-packages", "dist-packages")
    return [path for path in dict.fromkeys(sys.path) if path in known or path.endswith(endings)]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed without a word"
