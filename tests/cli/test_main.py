import json
import re

import pytest

from subeight import Options
from subeight.cli.options import parse_bytes
from subeight.errors import ParityError, SubeightError, UndecidedError
from subeight.verbs import Result
from tests.verbs import small


def test_json_puts_the_record_and_nothing_else_on_standard_output(run, house, tmp_path):
    done = run("quantize", house.base, "--recipe", house.rtn, "--out", tmp_path / "out", "--json", "--seed", "4")
    assert done.status == 0
    assert done.out == (tmp_path / "out" / "record.json").read_text()
    record = json.loads(done.out)
    assert record["settings"]["seed"] == 4
    assert record["command"][:2] == ["subeight", "quantize"]
    last = done.err.splitlines()[-1]
    assert last == f"record {tmp_path / 'out' / 'record.json'} report {tmp_path / 'out' / 'report.html'}"


def test_without_json_standard_output_is_empty(run, house, tmp_path):
    done = run("quantize", house.base, "--recipe", house.rtn, "--out", tmp_path / "out")
    assert (done.status, done.out) == (0, "")
    assert "3.500 bits per weight" in done.err


def test_a_dry_run_prints_the_plan(run, house, tmp_path):
    words = ("quantize", house.base, "--recipe", house.gptq, "--out", tmp_path / "out", "--dry-run")
    done = run(*words, "--json")
    assert done.status == 0
    lines = done.err.splitlines()
    for name in ("model.layers.1.mlp.down_proj", "lm_head"):
        row = next(line for line in lines if name in line)
        assert "int4:g32:sym" in row or "float32" in row
    assert re.search(r"weights +. inputs +. methods +. bits +. bytes +. reason +. runs in", done.err)
    assert "4.500 bits per weight" in done.err
    assert lines[-1].startswith("predicted: ")
    assert json.loads(done.out)["numbers"]["plan"]["bits_per_weight"] == 4.5
    assert not (tmp_path / "out").exists()


def test_text_options_are_honoured(run, house, tmp_path):
    other = small.write_rows(tmp_path / "other.jsonl", small.text_rows(6, categories=("verse",)))
    words = ["evaluate", house.base, "--against", house.base, "--out", tmp_path / "out", "--json", "--dtype", "float32"]
    done = run(*words, "--evals", other, "--evals", house.evals, "--eval-tokens", 250, "--eval-window", 30)
    record = json.loads(done.out)
    assert record["settings"]["evals"] == [str(other), str(house.evals)]
    assert (record["settings"]["eval_tokens"], record["settings"]["eval_window"]) == (250, 30)
    assert set(record["numbers"]["categories"]) == {"verse", "prose", "code"}
    assert record["settings"]["dtype"] == "float32"


def test_a_comparison_prints_its_table_and_its_verdict(run, house, tmp_path):
    recipes = f"{house.gptq}, {house.rtn}"
    done = run("compare", house.base, "--recipes", recipes, "--evals", house.evals, "--out", tmp_path / "out")
    assert done.status == 0
    assert re.search(r"small-gptq +. +4.50 ", done.err) and re.search(r"small-rtn +. +3.50 ", done.err)
    assert "small-gptq has the lowest KL" in done.err


def test_a_comparison_by_choices_alone_prints_dashes(capsys):
    from subeight.cli.show import comparison_table, words

    row = {"recipe": "a", "bits_per_weight": 4.0, "bytes": 10, "kl": None, "quantize_seconds": 1.0}
    words(comparison_table([row]))
    assert "-" in capsys.readouterr().err


def test_report_and_export(run, house, made, tmp_path):
    done = run("export", made("rtn").directory, "--out", tmp_path / "dense", "--json")
    assert done.status == 0 and json.loads(done.out)["kind"] == "export"
    done = run("report", made("rtn").directory, tmp_path / "dense", "--out", tmp_path / "page.html")
    assert (done.status, done.out) == (0, "")
    assert done.err.splitlines()[-1] == f"report {tmp_path / 'page.html'}"
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ParityError("the logits differ."), 1, "subeight: the logits differ."),
        (SubeightError("no."), 1, "subeight: no."),
        (UndecidedError("too little text."), 3, "subeight: too little text."),
        (KeyboardInterrupt(), 130, "subeight: interrupted; the same command continues where it stopped."),
        (SubeightError("two\n lines  of another library"), 1, "subeight: two lines of another library"),
    ],
)
def test_exit_statuses(run, house, monkeypatch, error, status, words):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("subeight.verbs.quantize", fail)
    done = run("quantize", house.base)
    assert done.status == status
    assert [line for line in done.err.splitlines() if line] == [words]
    assert done.out == ""


@pytest.mark.parametrize("words", [(), ("--help",), ("quantize", "--help")])
def test_help(run, words):
    done = run(*words)
    assert done.status == (0 if words else 2)
    assert "Usage" in done.out + done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("2GB", 2 * 10**9), ("512MiB", 512 * 2**20), ("1.5 g", 1_500_000_000), ("77", 77)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_every_option_reaches_the_verb(run, monkeypatch, house, tmp_path):
    """Each flag of the command line that names a field of Options sets it."""
    seen: list[tuple] = []

    def keep(*args, **given):
        seen.append((args, given))
        return Result(record=house_record, directory=None)

    from subeight import Coordinates, Record, Where

    house_record = Record(kind="quantize", coordinates=Coordinates(), numbers={})
    monkeypatch.setattr("subeight.verbs.compare", keep)
    flags = {
        "--out": tmp_path / "o", "--calibration": "text.txt", "--evals": "e.txt", "--eval-tokens": 9,
        "--eval-window": 8, "--generate": 7, "--seed": 6, "--threads": 5, "--device": "cuda:3", "--dtype": "float32",
        "--max-memory": "1MB",
        "--scratch": tmp_path / "s", "--across": "stack", "--workers": 3, "--cluster": "auto",
    }  # fmt: skip
    switches = ("--dry-run", "--yes", "--quiet", "--trust-remote-code", "--shared")
    assert run("compare", "m", "--recipes", "a, b", *(w for pair in flags.items() for w in pair), *switches).status == 0
    (args, given) = seen[0]
    assert args == ("m", ["a", "b"]) and given["shared"] is True
    assert given["workers"] == Where(3, "auto")
    expected = Options(
        out=tmp_path / "o", calibration="text.txt", evals=("e.txt",), eval_tokens=9, eval_window=8, generate=7, seed=6,
        threads=5, device="cuda:3", dtype="float32", max_memory=10**6, scratch=tmp_path / "s", across=("stack",),
        dry_run=True, yes=True, quiet=True, trust_remote_code=True, command=given["options"].command,
    )  # fmt: skip
    assert given["options"] == expected
