"""The stack is guilty only by an experiment in which the old packages were back; all else is said, not guessed."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight import Options, evaluate, lock, quantize, verify
from subeight.diagnose import course, stack
from subeight.errors import InputError, RecordError
from subeight.export import Parity
from subeight.lock import measure
from subeight.lock.lockfile import Lock
from subeight.lock.outcomes import Outcome
from subeight.lock.rerun import kept_states
from subeight.records import Run
from subeight.verbs import parity
from tests.diagnose import packed_case
from tests.verbs import small

_SILU = torch.nn.functional.silu


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return packed_case.make(tmp_path_factory.mktemp("stack"), rows=24)


@pytest.fixture(scope="module")
def options(whole):
    return Options(threads=1, quiet=True, dtype="float32", evals=(str(whole.prompts),))


@pytest.fixture
def pair(whole, tmp_path, monkeypatch):
    """The models with caches of their own: what one stack computed is not another's."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("subeight.verbs.options.cache_directory", lambda: tmp_path / "verbs")
    return replace(whole, folder=tmp_path)


@pytest.fixture(scope="module")
def locked(whole, options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subeight.verbs.options.cache_directory", lambda: whole.folder / "verbs")
        evaluate(str(whole.packed), str(whole.base), options=replace(options, out=whole.folder / "run"))
        lock(str(whole.folder / "run"), options=replace(options, out=whole.folder / "subeight.lock"))
    return whole.folder / "subeight.lock"


def _noisy(x):
    """Which tells the two models further apart."""
    return _SILU(x) + torch.sin(20 * x)


def _flipped(x):
    """Which errs in both models alike."""
    return -_SILU(x)


@contextmanager
def _today(locked, monkeypatch, changed):
    """A stack in which the new version of a package changed an activation, beside another new one that did nothing."""
    held = Lock.read(locked).distributions
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: changed(x))
        patch.setattr(measure, "distributions", lambda: {**held, "fastsilu": "2", "bystander": "2"})
        yield


@pytest.fixture
def older(locked):
    """The lock of the older stack, in which both packages had version 1."""
    held = Lock.read(locked)
    path = locked.with_name("older.lock")
    held.model_copy(update={"distributions": {**held.distributions, "fastsilu": "1", "bystander": "1"}}).write(path)
    return path


class Rebuilt:
    """Environments that are this process: fastsilu 1 is torch's own activation."""

    environments = None

    def __init__(self, what, runs):
        self.what, self.runs = what, runs

    def below(self, _root, _environments=None):
        return self

    def fetch(self, package, version):
        return None

    def run(self, pins):
        self.runs.append((self.what[0].name, dict(pins)))
        path, baseline, candidate, _device, threads = self.what
        out = path.parent / f"out-{len(self.runs)}"
        self.cache = path.parent / f"cache-{len(self.runs)}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("subeight.verbs.options.cache_directory", lambda: self.cache)
            if "fastsilu" in pins:
                patch.setattr(torch.nn.functional, "silu", _SILU)
                patch.setattr(measure, "distributions", lambda: dict(pins))
            names = str(candidate.directory), path
            verify(*names, baseline=str(baseline.directory), options=Options(out=out, quiet=True, threads=threads))
        rows = Run.open(out).read_samples()
        shutil.rmtree(out)
        return Outcome.of_rows(rows)

    def states(self):
        return kept_states(self.cache)


@pytest.fixture
def runs(monkeypatch):
    found: list = []
    monkeypatch.setattr(stack.Rerun, "of", lambda *what: Rebuilt(what, found))
    return found


@pytest.mark.parametrize("changed", [_noisy, _flipped])
def test_the_guilty_package_is_named_and_what_pinning_it_recovers_is_measured(pair, older, monkeypatch, runs, changed):
    with _today(older, monkeypatch, changed):
        finding, after = stack.examine(case := pair.case(last_good=older, replay=True))
    (cause,) = finding.causes
    assert (finding.verdict, cause.kind, cause.places) == ("guilty", "package", ("fastsilu",))
    assert cause.repair == {"pin": {"fastsilu": "1"}}
    assert cause.recovered.value >= 0.1 and cause.recovered.low > 0
    assert runs[0] == ("older.lock", {"bystander": "1", "fastsilu": "1"})
    assert runs[-1] == ("prompts.lock", {"fastsilu": "1"})
    assert (
        "fastsilu (1 -> 2) is guilty" in finding.evidence and "with the old version, which recovers" in finding.evidence
    )
    assert finding.details["replay"]["share"] == 0.0 and finding.evaluations == 1 + 3 + 3
    assert any(probe["relation"] == "wrong" for probe in finding.details["probes"])
    assert after.loss.value < after.whole.value and after.whole is not case.whole
    assert cause.recovered.value == pytest.approx(1 - after.loss.value / after.whole.value)
    later, _ = course._examined(after, "layers", ())
    assert later.verdict == "skipped" and "pin the package and diagnose again" in later.evidence
    assert json.loads(json.dumps(finding.to_dict()))["places"] == ["fastsilu"]


def test_without_replay_a_changed_result_is_unknown_not_guilty(pair, older, monkeypatch, runs):
    with _today(older, monkeypatch, _noisy):
        finding, case = stack.examine(pair.case(last_good=older))
    assert finding.verdict == "unknown" and not finding.causes and runs == []
    assert "--replay finds out why" in finding.evidence and "fastsilu: 1 -> 2" in finding.evidence
    assert case.loss is case.whole


def test_the_same_result_clears_the_stack_whatever_changed(pair, older, monkeypatch, runs):
    held = Lock.read(older).distributions
    monkeypatch.setattr(measure, "distributions", lambda: {**held, "fastsilu": "2"})
    for replay in (False, True):
        finding, _ = stack.examine(pair.case(last_good=older, replay=replay))
        assert finding.verdict == "cleared" and runs == []
        assert [change["what"] for change in finding.details["changes"]] == ["fastsilu"]
        assert "no difference at all" in finding.evidence


def test_a_package_that_is_not_what_the_prompts_lose_is_cleared(pair, older, monkeypatch, runs):
    """It changes the locked numbers by a little, and the prompts fail for another reason."""
    broken = shutil.copytree(pair.packed, pair.folder / "broken")
    monkeypatch.setattr(measure, "differing_parts", lambda *_: [])
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: _SILU(x) * (1 + 1e-4))
        held = Lock.read(older).distributions
        patch.setattr(measure, "distributions", lambda: {**held, "fastsilu": "2"})
        finding, _ = stack.examine(pair.case(candidate=broken, last_good=older, replay=True))
    assert finding.verdict == "cleared" and not finding.causes
    assert "not what these prompts lose" in finding.evidence


def test_another_candidate_than_the_locked_one_cannot_be_told_from_the_stack(pair, locked, runs, tmp_path):
    other = shutil.copytree(pair.packed, tmp_path / "other")
    name = "model.layers.1.mlp.down_proj.weight_scale"
    (path,) = (path for path in other.glob("*.safetensors") if name in load_file(path))
    save_file({key: value * (3 if key == name else 1) for key, value in load_file(path).items()}, path)
    finding, _ = stack.examine(pair.case(candidate=other, last_good=locked, replay=True))
    assert finding.verdict == "unknown" and "not the locked checkpoint" in finding.evidence and runs == []


def test_a_lock_of_another_model_and_a_damaged_one_are_sentences(pair, locked, tmp_path):
    other = small.save_llama(tmp_path / "other", seed=3)
    case = pair.case(last_good=locked)
    with pytest.raises(RecordError, match="is not the baseline that was locked"):
        stack.examine(replace(case, baseline=measure.Model(other)))
    (tmp_path / "bad.lock").write_text("{")
    with pytest.raises(RecordError, match="is not a lock"):
        stack.examine(pair.case(last_good=tmp_path / "bad.lock"))
    with pytest.raises(InputError, match="There is no model at"):
        stack.examine(pair.case(last_good=tmp_path / "nothing"))


def test_an_older_checkpoint_that_still_works_clears_the_stack_and_lists_what_changed(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "check", lambda *a, **k: Parity(max_abs=0.0, bound=1.0, tokens=0, compared=0))
    recipe = small.write_recipe(tmp_path / "worse.yaml", "name: worse\nweights: int2:g32:sym\nmethods: [rtn]\n")
    made = quantize(str(pair.base), str(recipe), options=Options(out=tmp_path / "int2", threads=1, quiet=True))
    finding, _ = stack.examine(pair.case(candidate=made.directory, last_good=pair.packed))
    assert finding.verdict == "cleared" and "what still worked works today" in finding.evidence
    changed = {change["what"]: (change["before"], change["after"]) for change in finding.details["changes"]}
    assert changed["recipe"][0].startswith("packed (") and changed["recipe"][1].startswith("worse (")
    assert changed["format of model.layers.0.mlp.down_proj"] == ("int4:g32:sym", "int2:g32:sym")
    finding, _ = stack.examine(pair.case(last_good=made.directory))
    assert finding.verdict == "unknown" and "a lock of that time would tell" in finding.evidence


def test_without_a_lock_nothing_is_guilty(pair, tmp_path):
    finding, _ = stack.examine(pair.case())
    assert finding.verdict in {"cleared", "unknown"} and not finding.causes
    foreign = shutil.copytree(pair.packed, tmp_path / "foreign")
    (foreign / "record.json").unlink()
    finding, _ = stack.examine(pair.case(candidate=foreign))
    assert finding.verdict == "skipped" and "--last-good" in finding.evidence
