"""The packed model: a checkpoint as plain transformers loads and runs it, in a process of its own.

The process may be another environment's interpreter, with that environment's kernels. It stays alive between
checkpoints, because starting torch costs more than a small model does.
"""

import atexit
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from subeight.errors import InputError, ParityError

PROGRAM = Path(__file__).with_name("packed_program.py").read_text(encoding="utf-8")
PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
_ALIVE = 2  # processes that are kept
_VOLATILE = ("PYTEST_CURRENT_TEST", "_", "SHLVL", "COLUMNS", "LINES")


@dataclass(frozen=True)
class Checkpoint:
    """What is loaded: a directory, or one GGUF file in it."""

    directory: Path
    gguf: str | None = None
    own: bool = False  # in our own method, which transformers loads after `import subeight`
    trust_remote_code: bool = False


class PackedRunner:
    """A process that runs packed models; close it, or use it in `with`.

    `isolated`: neither PYTHON* variables nor the user's site packages reach it; without, it sees what a user's own
    script would. `timeout` is for one answer.

    Raises:
        InputError: `python` is no program.
        ParityError: of every call: the process ended, took too long, or transformers cannot do it; one sentence.
    """

    def __init__(self, python: str | None = None, *, isolated: bool = False, timeout: float = 1800) -> None:
        self.timeout = timeout
        self._scratch = Path(tempfile.mkdtemp(prefix="packed-"))
        self._errors = (self._scratch / "errors").open("w+", encoding="utf-8", errors="replace")
        self._left = b""
        flags = ["-I"] if isolated else []
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, *flags, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=self._scratch,
                env=environment,
            )
        except OSError as error:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise InputError(
                f"{python} cannot be run ({error.strerror}); give the Python interpreter of the environment that runs "
                "the packed model."
            ) from error

    def __enter__(self) -> "PackedRunner":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def load(self, checkpoint: Checkpoint, device: str = "cpu", threads: int | None = None) -> dict[str, list[str]]:
        """Loads it in float32; returns the names of tensors that were missing, unexpected or of another shape."""
        return self._ask(
            do="load",
            directory=str(checkpoint.directory.resolve()),
            gguf=checkpoint.gguf,
            own=checkpoint.own,
            trust=checkpoint.trust_remote_code,
            device=device,
            threads=threads or torch.get_num_threads(),
        )

    def logits(self, rows: Sequence[Tensor], at: Sequence[Tensor]) -> list[Tensor]:
        """For each row of token ids, the logits [positions, vocabulary] behind the tokens at these positions."""
        given = {f"ids{number:06d}": row for number, row in enumerate(rows)}
        given |= {f"at{number:06d}": places for number, places in enumerate(at)}
        found = self._tensors(given, do="logits")
        return [found[f"logits{number:06d}"] for number in range(len(rows))]

    def products(self, row: Tensor, modules: Sequence[str]) -> dict[str, Tensor]:
        """What went into these modules and came out of them, `name/in` and `name/out`, both [tokens, channels]."""
        return self._tensors({"ids000000": row}, do="products", modules=list(modules))

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """These parameters as the loaded model holds them, in float32, where it holds them as plain numbers."""
        return self._tensors({}, do="weights", names=list(names))

    def release(self) -> bool:
        """Frees the model; returns whether Subeight has come into the process."""
        return bool(self._ask(do="release")["subeight"])

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _tensors(self, given: dict[str, Tensor], **request: Any) -> dict[str, Tensor]:
        paths = self._scratch / "given.safetensors", self._scratch / "result.safetensors"
        if given:
            save_file(
                {name: value.to(torch.int64).cpu().clone().contiguous() for name, value in given.items()}, paths[0]
            )
        self._ask(**request, given=str(paths[0]), result=str(paths[1]))
        found = {name: value.clone() for name, value in load_file(paths[1]).items()}
        paths[1].unlink()
        return found

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ParityError(self._ended()) from None
        answer = json.loads(self._line())
        if "error" in answer:
            raise ParityError(f"plain transformers could not {request['do']} it: {answer['error'].rstrip('.')}")
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor, until = self._process.stdout.fileno(), time.monotonic() + self.timeout
        while b"\n" not in self._left:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self._process.kill()
                raise ParityError(f"it was not loaded and run within {self.timeout:.0f} seconds")
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise ParityError(self._ended())
            self._left += part
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _ended(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        return f"the process that runs plain transformers ended with status {status} ({last.rstrip('.')})"


_runners: dict[tuple[Any, ...], PackedRunner] = {}


def kept_runner(python: str | None = None) -> PackedRunner:
    """The runner of this interpreter in today's environment: the same one as before, where it still lives."""
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name not in _VOLATILE))
    key = (python or sys.executable, environment)
    found = _runners.pop(key, None)
    if found is None or not found.is_alive:
        if found is not None:
            found.close()
        while len(_runners) >= _ALIVE:
            _runners.pop(next(iter(_runners))).close()
        found = PackedRunner(python)
    _runners[key] = found
    return found


@atexit.register
def close_runners() -> None:
    """Ends every kept process."""
    while _runners:
        _runners.popitem()[1].close()
