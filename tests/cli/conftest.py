"""The command line called in this process, beside the tiny model of the verbs' tests."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from subeight.cli.main import main
from tests.verbs.conftest import caches, house, made, no_check  # noqa: F401 - fixtures


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, no_check) -> Callable[..., Done]:  # noqa: F811
    """Runs `subeight WORDS...` and says how it ended; checkpoints are not loaded again in a fresh process."""

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["subeight", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return Done(left.value.code, captured.out, captured.err)

    return call
