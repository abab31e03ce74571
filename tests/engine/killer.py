"""Runs the command line over and over in forked children, some of which kill themselves; imports are paid once.

`python -m tests.engine.killer` reads one order, as a line of JSON, after the other, and answers each with a line: how
its child ended, how many seconds it took and what it said last. An order is {"argv": [...]} for an undisturbed run,
with "at" for one that is killed after so many seconds, or with "name" ("module:qualified.name"), "call" and "when"
("before" or "after") for one that is killed at that call of a function.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import torch

from subeight.cli import main as cli

SAID = TemporaryFile("w", buffering=1)  # noqa: SIM115 - it lasts as long as the process


def _killing(function: Callable[..., Any], call: int, when: str) -> Callable[..., Any]:
    seen = 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if seen == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return killed


def _arm(order: dict[str, Any]) -> None:
    module, _, path = order["name"].partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, _killing(getattr(owner, last), order["call"], order["when"]))


def _command(argv: list[str]) -> int:
    sys.argv = ["subeight", *argv]
    try:
        return cli.main()
    except SystemExit as done:
        return int(done.code or 0)


def _child(order: dict[str, Any]) -> NoReturn:
    verb = importlib.import_module("subeight.verbs.quantize")
    verb.verified = lambda directory, session: {"skipped": "it starts a process that takes seconds"}
    if "name" in order:
        _arm(order)
    os._exit(_command(order["argv"]))


def _run(order: dict[str, Any]) -> dict[str, Any]:
    SAID.seek(0)
    SAID.truncate()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(order)
    if "at" in order:
        time.sleep(order["at"])
        os.kill(pid, signal.SIGKILL)  # one that has ended already is still there to be waited for, and unharmed
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    seconds = time.monotonic() - began
    said = os.pread(SAID.fileno(), 1 << 20, 0)[-400:].decode(errors="replace")
    return {"killed": killed, "status": os.waitstatus_to_exitcode(status), "seconds": seconds, "said": said}


if __name__ == "__main__":
    torch.set_num_threads(1)
    told = sys.stdout
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it lasts as long as the process
    sys.stderr = SAID
    warm = False
    for line in sys.stdin:
        asked = json.loads(line)
        if not warm:
            _command([*asked["argv"], "--dry-run"])  # what it imports, children need not
            warm = True
        print(json.dumps(_run(asked)), file=told, flush=True)
