"""Progress: silent when short, plain lines into a file, a bar on a terminal, never on standard output."""

import io
import threading
import time

import pytest

from subeight.records import progress
from subeight.records.progress import clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(stream, steps=8, step=0.02, total=8, **options):
    options = {"patience": 0.03, "interval": 0.03} | options
    with progress(total, "quantize", "blocks", stream=stream, **options) as advance:
        for _ in range(steps):
            time.sleep(step)
            advance()
    return stream.getvalue()


def test_short_work_says_nothing():
    assert work(io.StringIO(), patience=2.0) == ""
    assert work(Terminal(), patience=2.0) == ""


def test_quiet_says_nothing():
    assert work(io.StringIO(), quiet=True) == ""


def test_lines_count_and_tell_time_left():
    lines = work(io.StringIO()).splitlines()
    assert len(lines) >= 2 and all(line.startswith("quantize: ") for line in lines)
    assert "/8 blocks, 0:00, 0:0" in lines[-2] and lines[-2].endswith(" left")
    assert lines[-1] == "quantize: 8/8 blocks in 0:00"


def test_unknown_total_has_no_time_left():
    lines = work(io.StringIO(), total=None).splitlines()
    assert "left" not in "".join(lines) and lines[-1] == "quantize: 8 blocks in 0:00"


def test_resumed_work_does_not_count_as_speed():
    stream = io.StringIO()
    with progress(100, "x", stream=stream, done=90, patience=0.02, interval=0.02) as advance:
        time.sleep(0.05)
        assert "left" not in stream.getvalue() and "90/100" in stream.getvalue()
        advance(10)
    assert "100/100" in stream.getvalue()


def test_a_failure_does_not_claim_the_end():
    stream = io.StringIO()
    with pytest.raises(KeyError), progress(5, "x", stream=stream, patience=0.01, interval=9) as advance:
        time.sleep(0.05)
        advance()
        raise KeyError
    assert " in " not in stream.getvalue()


def test_a_terminal_gets_bars_nested_ones_too(capsys):
    stream = Terminal()
    with progress(2, "outer <b>[red]", "rows", stream=stream, patience=0.0) as advance:
        advance()
        work(stream)
        advance()
    text = stream.getvalue()
    assert "outer <b>[red]" in text and "quantize" in text and "8/8 blocks" in text and "2/2 rows" in text
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_advance_from_many_threads_loses_nothing():
    stream = io.StringIO()
    with progress(4000, "x", stream=stream, patience=0.0, interval=9) as advance:
        threads = [threading.Thread(target=lambda: [advance() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "4,000/4,000" in stream.getvalue()


def test_clock():
    assert [clock(s) for s in (0, 7.4, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
