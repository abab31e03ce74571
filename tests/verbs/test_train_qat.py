"""`train qat` on a tiny model: it gains, at the same bytes, what was trained is what is stored, and it resumes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from subeight.errors import InputError
from subeight.models.model import Model
from subeight.records import Record
from subeight.train import qat
from subeight.verbs.learning import Asked
from subeight.verbs.quantize import quantize
from subeight.verbs.train_qat import train_qat
from tests.verbs import small

SHORT = Asked(length=32, epochs=4, batch=4, rate=0.02, codes=True, blockwise=True)


@pytest.fixture(scope="module")
def start(house) -> str:
    return str(
        quantize(str(house.base), str(house.rtn), options=house.options(out=house.folder / "qat-start")).directory
    )


def test_it_gains_at_the_same_bits(house, start: str, tmp_path: Path) -> None:
    result = train_qat(
        str(house.base), "any", data=str(house.calibration), start=start, asked=SHORT,
        options=house.options(out=tmp_path / "out"),
    )  # fmt: skip
    numbers = result.numbers
    assert numbers["kl"] < numbers["kl_start"] and 0 < numbers["gain"] < 1
    assert numbers["training"]["loss_after"] < numbers["training"]["loss_before"]
    curve = numbers["training"]["curve"]
    assert [curve[0][0], curve[-1][0]] == [0, numbers["training"]["steps"]] and len(curve) > 5
    assert max(numbers["training"]["turned"].values()) > 0 and numbers["parity"]["max_abs"] < numbers["parity"]["bound"]
    before, after = Model(start), Model(str(result.directory))
    assert [after.codes.read(n).format for n in after.codes.names] == [
        before.codes.read(n).format for n in before.codes.names
    ]
    assert any((after.codes.read(n).codes != before.codes.read(n).codes).any() for n in after.codes.names)


def test_codes_are_tuned_block_by_block_first(house, start: str, tmp_path: Path) -> None:
    asked = replace(SHORT, codes=False, rate=0.0)  # nothing is learned end to end
    options = house.options(out=tmp_path / "out")
    result = train_qat(str(house.base), data=str(house.calibration), start=start, asked=asked, options=options)
    told = result.numbers["training"]
    assert told["loss_before"] == told["loss_after"] < told["loss_start"]
    assert 0 < sum(told["turned"].values()) / len(told["turned"]) < 0.5


def test_what_only_gets_worse_is_not_kept(house, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are nearer to the baseline's, of a model that is not."""
    monkeypatch.setattr("subeight.verbs.learning.loss_of_held", lambda *_: 0.0)
    options = house.options(out=tmp_path / "out")
    result = train_qat(str(house.base), data=str(house.calibration), start=start, asked=SHORT, options=options)
    assert set(result.numbers["training"]["turned"].values()) == {0.0}
    before, after = Model(start), Model(str(result.directory))
    assert all((after.codes.read(n).codes == before.codes.read(n).codes).all() for n in after.codes.names)


def test_it_goes_on_where_it_was_killed(house, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes as without the kill."""

    def run(out: Path) -> Path:
        options = house.options(out=out)
        return train_qat(
            str(house.base), data=str(house.calibration), start=start, asked=SHORT, options=options
        ).directory

    whole, seen = run(tmp_path / "whole"), []
    step = qat._Advance.on_step_end

    def killed(self, args, state, control, **more) -> None:
        step(self, args, state, control, **more)
        seen.append(state.global_step)
        if len(seen) == 27:
            raise KeyboardInterrupt

    monkeypatch.setattr(qat._Advance, "on_step_end", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    assert not (tmp_path / "killed" / "model.safetensors.index.json").exists()
    again = run(tmp_path / "killed")
    assert seen[27] == 26  # after the last state that was kept, of step 25
    for path in sorted(whole.glob("*.safetensors")):
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert not (again / ".blocks").exists()


def test_culprits_are_what_has_few_bits(house, tmp_path: Path) -> None:
    rules = 'rules:\n  - {match: "*.down_proj", weights: int2:g32:sym}\n'
    recipe = small.write_recipe(tmp_path / "mixed.yaml", f"weights: int4:g32:sym\nmethods: [rtn]\n{rules}")
    result = train_qat(
        str(house.base), str(recipe), data=str(house.calibration), asked=replace(SHORT, only="culprits"),
        options=house.options(out=tmp_path / "out"),
    )  # fmt: skip
    assert result.numbers["linears"] == [f"model.layers.{n}.mlp.down_proj" for n in (0, 1)]
    assert result.numbers["kl"] < result.numbers["kl_start"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"asked": replace(SHORT, only="*.nothing")}, "means no quantized linear of this plan"),
        ({"asked": replace(SHORT, only="culprits"), "start": "gptq"}, "means no quantized linear of this plan"),
        ({"asked": replace(SHORT, tokens=10**6)}, "were asked for"),
        ({"data": "/nowhere.txt"}, "nowhere"),
        ({"start": "/nowhere"}, "nowhere"),
        ({"start": "base"}, "is not quantized"),
    ],
)
def test_bad_input(house, made, start: str, tmp_path: Path, changed: dict, words: str) -> None:
    names = {"gptq": lambda: str(made("gptq").directory), "base": lambda: str(house.base)}
    given = {"data": str(house.calibration), "start": start, "asked": SHORT} | changed
    given["start"] = names.get(given["start"], lambda: given["start"])()
    with pytest.raises(InputError, match=words):
        train_qat(str(house.base), **given, options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_start_of_another_model_is_refused(house, start: str, tmp_path: Path) -> None:
    other = small.save_llama(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="was made of another model"):
        train_qat(str(other), data=str(house.calibration), start=start, options=house.options(out=tmp_path / "out"))


def test_a_dry_run_says_its_time_and_writes_nothing(house, start: str, tmp_path: Path) -> None:
    options = house.options(out=tmp_path / "out", dry_run=True)
    result = train_qat(str(house.base), data=str(house.calibration), start=start, asked=SHORT, options=options)
    assert result.numbers["predicted"]["seconds"] > 0 and not (tmp_path / "out").exists()


LAUNCHED = """
import sys
from pathlib import Path
from accelerate import PartialState
from subeight.train import qat
from subeight.verbs import learning
from subeight.verbs.learning import Asked
from subeight.verbs.options import Options
from subeight.verbs.train_qat import train_qat

base, data, start, evals, out, last = sys.argv[1:]
step, shard = qat._Advance.on_step_end, learning.shard

def stopped(self, args, state, control, **more):
    step(self, args, state, control, **more)
    if state.global_step == int(last):
        sys.exit(3)

def told(*given):
    print("in shards", flush=True)
    shard(*given)

qat._Advance.on_step_end, learning.shard = stopped, told
options = Options(out=Path(out), quiet=True, threads=1, dtype="float32", evals=(evals,))
asked = Asked(length=32, epochs=2, batch=2, rate=0.02, codes=True)
train_qat(base, data=data, start=start, asked=asked, options=options)
assert PartialState().num_processes == 2
"""


def launched(house, start: str, out: Path, *, shards: bool, last: int = -1) -> tuple[int, str]:
    """Two processes; torchrun and the environment stand for `accelerate launch`, which starts one without a GPU."""
    script = out.with_suffix(".py")
    script.write_text(LAUNCHED)
    given = [str(house.base), str(house.calibration), start, str(house.evals), str(out), str(last)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": str(shards).lower()}
    command = [sys.executable, *launch, str(script), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_two_processes_make_one_checkpoint(house, start: str, tmp_path: Path) -> None:
    """Each takes half of every step; with FSDP it holds half of the model, and goes on where it was killed."""
    outs = {name: tmp_path / name for name in ("whole", "shards", "killed")}
    status, said = launched(house, start, outs["whole"], shards=False)
    assert status == 0 and "in shards" not in said, said
    status, said = launched(house, start, outs["shards"], shards=True)
    assert status == 0 and said.count("in shards") == 4, said  # the student and the baseline
    assert launched(house, start, outs["killed"], shards=True, last=7)[0] != 0
    status, said = launched(house, start, outs["killed"], shards=True)
    assert status == 0, said
    numbers = {name: Record.read(out).numbers for name, out in outs.items()}
    for one in numbers.values():
        assert one["kl"] < one["kl_start"] and one["parity"]["max_abs"] < one["parity"]["bound"]
    assert numbers["shards"]["kl"] == pytest.approx(numbers["whole"]["kl"], rel=1e-3)
    assert Model(str(outs["whole"])).codes is not None
    for path in outs["shards"].glob("*.safetensors"):
        assert path.read_bytes() == (outs["killed"] / path.name).read_bytes()


def test_codes_that_the_text_cannot_tell_stay(house, start: str, tmp_path: Path) -> None:
    """Scales and norms are trained, and the record says why no more."""
    told: list[str] = []
    asked = replace(SHORT, codes=None, epochs=1, blockwise=False)
    result = train_qat(
        str(house.base), data=str(house.calibration), start=start, asked=asked, tell=told.append,
        options=house.options(out=tmp_path / "out"),
    )  # fmt: skip
    training = result.numbers["training"]
    assert training["predicted"]["decided"] < 0.01 and training["codes"] is False
    assert set(training["turned"].values()) == {0.0} and training["loss_after"] < training["loss_before"]
    assert "scales and norms alone" in told[0] and "too short" in result.record.warnings[0]
