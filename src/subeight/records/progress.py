"""Progress on standard error, with the time left.

A bar on a terminal, plain lines every few seconds elsewhere, and nothing for what takes under two seconds.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

Advance = Callable[..., None]


@contextlib.contextmanager
def progress(
    total: float | None,
    what: str,
    unit: str = "",
    *,
    done: float = 0,
    quiet: bool = False,
    stream: TextIO | None = None,
    patience: float = 2.0,
    interval: float = 5.0,
) -> Iterator[Advance]:
    """Yields `advance(n=1)`; shows what was done of `total` units, the time it took and the time left.

    `done` was there before (a resumed run) and does not count as speed. `patience` is the number of seconds
    before anything is shown, `interval` that between plain lines. Contexts may be nested; `advance` may be
    called from any thread.
    """
    meter = _Meter(total, what, unit, done)
    if quiet:
        yield meter.advance
        return
    stream = sys.stderr if stream is None else stream
    shown = _bar if stream.isatty() else _lines
    stop = threading.Event()
    thread = threading.Thread(target=shown, args=(meter, stream, stop, patience, interval), daemon=True)
    thread.start()
    try:
        yield meter.advance
        meter.ended = time.monotonic()
    finally:
        stop.set()
        thread.join()


@dataclass
class _Meter:
    """Counts; the showing thread only reads it."""

    total: float | None
    what: str
    unit: str
    done: float
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None  # set when the body ended well
    _before: float = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._before = self.done

    def advance(self, n: float = 1) -> None:
        with self._lock:
            self.done += n

    @property
    def elapsed(self) -> float:
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    @property
    def left(self) -> float | None:
        fresh = self.done - self._before
        if self.total is None or fresh <= 0:
            return None
        return max(0.0, self.total - self.done) * self.elapsed / fresh

    def count(self) -> str:
        of = "" if self.total is None else f"/{_number(self.total)}"
        return f"{_number(self.done)}{of} {self.unit}".rstrip()

    def times(self) -> str:
        if self.ended is not None:
            return f"in {clock(self.elapsed)}"
        left = f", {clock(self.left)} left" if self.left is not None else ""
        return f"{clock(self.elapsed)}{left}"


def clock(seconds: float) -> str:
    """Seconds as `0:07`, `12:34` or `1:02:03`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float) -> str:
    return f"{round(value):,}"


def _lines(meter: _Meter, stream: TextIO, stop: threading.Event, patience: float, interval: float) -> None:
    wait = patience
    while not stop.wait(wait):
        print(f"{meter.what}: {meter.count()}, {meter.times()}", file=stream, flush=True)
        wait = interval
    if meter.ended is not None and meter.elapsed >= patience:
        print(f"{meter.what}: {meter.count()} {meter.times()}", file=stream, flush=True)


class _Times(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["meter"].times())


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["meter"].count())


@dataclass
class _Screen:
    """The bars now on the terminal: there is one terminal, and rich draws one live display on it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    display: Progress | None = None
    bars: int = 0

    @contextlib.contextmanager
    def bar(self, meter: _Meter, stream: TextIO) -> Iterator[Callable[[], None]]:
        with self.lock:
            if self.display is None:
                columns = (TextColumn("{task.description}", markup=False), BarColumn(), _Count(), _Times())
                # Standard output is the user's (`--json`): rich must not draw it into the display.
                self.display = Progress(
                    *columns, console=Console(file=stream), refresh_per_second=4, redirect_stdout=False
                )
                self.display.start()
            display = self.display
            self.bars += 1
            task = display.add_task(meter.what, total=meter.total, meter=meter)
        try:
            yield lambda: display.update(task, completed=meter.done)
        finally:
            with self.lock:
                display.update(task, completed=meter.done)
                self.bars -= 1
                if self.bars == 0:
                    display.stop()
                    self.display = None


_SCREEN = _Screen()


def _bar(meter: _Meter, stream: TextIO, stop: threading.Event, patience: float, interval: float) -> None:
    if stop.wait(patience):
        return
    with _SCREEN.bar(meter, stream) as update:
        while not stop.wait(min(0.25, interval)):
            update()
