"""Each kind of fault changes just what it says, and the same seed plants the same bytes."""

import hashlib
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from benchmarks.faults.bases import RECIPES, Base
from benchmarks.faults.kinds import KINDS, layers, packages
from benchmarks.faults.plant import Case, plant
from safetensors.torch import load_file

from subeight.models.model import Model


@pytest.fixture(scope="session", autouse=True)
def one_recipe() -> None:
    """All candidates of the tests are rounded plainly, so that few are made; nothing here is about the recipe."""
    plain = "weights: int4:g32:sym\nmethods: [rtn]\n"
    RECIPES.update(dict.fromkeys(("gptq4", "gptq3", "rtn3", "awq4", "mixed", "mixed-rtn"), plain))
    RECIPES["affine3"] = RECIPES["affine4"]


@pytest.fixture(scope="session")
def shared(scratch: Path) -> Path:
    """The recipes above that are one and the same are made once."""
    base = Base("dense", scratch)
    made = base.candidate("rtn4")
    for name in ("gptq4", "gptq3", "rtn3", "awq4"):
        made.with_name(name).symlink_to(made, target_is_directory=True)
    affine = base.candidate("affine4")
    affine.with_name("affine3").symlink_to(affine, target_is_directory=True)
    return scratch


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


def changed(case: Case, healthy: Path) -> set[str]:
    """The stored tensors that differ, are new or are gone."""
    ours, theirs = tensors(healthy), tensors(case.candidate)
    both = ours.keys() & theirs.keys()
    return (ours.keys() ^ theirs.keys()) | {name for name in both if not torch.equal(ours[name], theirs[name])}


def files(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "record.json"
    }


@pytest.mark.parametrize("kind", ["scales", "zeros", "pair", "permuted", "norm", "block", "head"])
def test_a_fault_changes_the_tensors_of_its_places_and_no_other(kind, shared, tmp_path):
    case = plant(kind, "dense", 1, tmp_path / kind, shared, verify=False)
    healthy = shared / "dense" / ("affine4" if kind == "zeros" else "rtn4")
    parts = {
        "scales": {"weight_scale"},
        "pair": {"weight_scale"},
        "zeros": {"weight_zero_point"},
        "permuted": {"weight_packed", "weight_scale"},
        "norm": {"weight"},
        "block": {"weight_packed", "weight_scale"},
        "head": {"weight_packed", "weight_scale", "weight_shape", "weight"},
    }[kind]
    places = {place.removesuffix(".weight") for place in case.answer.places}
    assert changed(case, healthy) == {f"{place}.{part}" for place in places for part in parts}


@pytest.mark.parametrize("kind", ["scales", "rope"])
def test_the_same_seed_plants_the_same_bytes(kind, shared, tmp_path):
    for at in ("one", "two"):
        plant(kind, "dense", 3, tmp_path / at, shared, verify=False)
    other = plant(kind, "dense", 4, tmp_path / "other", shared, verify=False)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert files(tmp_path / "one") != files(other.candidate.parent)


def test_what_is_planted_can_be_read_and_its_formats_are_said(shared, tmp_path):
    case = plant("block", "dense", 0, tmp_path / "case", shared, verify=False)
    codes = Model(case.candidate).codes
    assert codes is not None
    two = {name for name in codes.names if str(codes.read(name).format) == "int2:g32:sym"}
    assert two == set(case.answer.places) and len(two) == 7


def test_a_pair_hurts_together_and_hardly_alone(shared, tmp_path):
    case = plant("pair", "dense", 0, tmp_path / "case", shared)
    notes = case.notes
    rise = notes["faulty"] - notes["healthy"]
    assert notes["faulty"] >= 1.5 * notes["healthy"]
    assert all(alone - notes["healthy"] <= 0.25 * rise for alone in notes["alone"])


def test_a_fault_that_does_not_hurt_is_not_planted(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "scaled", lambda weight, factors: weight)
    monkeypatch.setattr("benchmarks.faults.plant.TRIES", 2)
    with pytest.raises(layers.Unplantable, match="the loss rose from"):
        plant("scales", "dense", 0, tmp_path / "case", shared)


def test_config_tokenizer_and_template(shared, tmp_path):
    rope, bos, template = (
        plant(kind, "dense", 2, tmp_path / kind, shared, verify=False) for kind in ("rope", "bos", "template")
    )
    base = Base("dense", shared)
    before = Model(base.directory).config.rope_parameters["rope_theta"]
    assert Model(rope.candidate).config.rope_parameters["rope_theta"] != before
    assert Model(base.directory).tokenizer()("a")["input_ids"][0] == 0
    assert Model(bos.candidate).tokenizer()("a")["input_ids"][0] != 0
    chat = [{"role": "user", "content": "Hi"}]
    texts = [
        Model(d).tokenizer().apply_chat_template(chat, tokenize=False) for d in (base.directory, template.candidate)
    ]
    assert texts[0] != texts[1]
    for case in (rope, bos, template):
        assert changed(case, shared / "dense" / "rtn4") == set()


PRODUCTS = """
import sys, torch
import torch.nn.functional as F
rows, columns, tail = map(int, sys.argv[1:])
print(*(int(F.linear(torch.ones(1, w.shape[1]), w)[0, 0]) for w in (torch.ones(rows, columns), torch.ones(3, columns))))
"""


def test_a_kernel_fault_errs_on_one_shape_in_another_process_only(shared, tmp_path):
    case = plant("kernel", "dense", 0, tmp_path / "case", shared)
    shape, tail = tuple(case.notes["shape"]), case.notes["tail"]
    command = [sys.executable, "-c", PRODUCTS, *map(str, (*shape, tail))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **case.environment}, check=True)
    assert done.stdout.split() == [str(shape[1] - tail), str(shape[1])]
    assert float(torch.nn.functional.linear(torch.ones(1, shape[1]), torch.ones(shape))[0, 0]) == shape[1]
    linears = {info.name: info.shape for info in Model(case.candidate).linears}
    assert {linears[name] for name in case.answer.places} == {shape}
    assert changed(case, shared / "dense" / "rtn4") == set()


def test_prompts_are_short_and_never_of_the_calibration_part(shared, tmp_path):
    base = Base("dense", shared)
    path = base.prompts(tmp_path / "p.jsonl", {"german": 4, "chat": 4})
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["category"] for row in rows] == ["german"] * 4 + ["chat"] * 4
    assert all(len(row["text"]) <= 150 for row in rows if "text" in row)
    assert not any(row["id"].startswith("cal-") for row in rows)


def test_every_kind_has_its_row_in_the_table_of_answers():
    table = (Path(__file__).parents[2] / "benchmarks" / "faults" / "README.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"| `{kind}` |" not in table] == []


def test_the_second_version_of_a_package_changes_an_activation(tmp_path):
    made = packages.wheel(tmp_path, "fastsilu", "2.0", packages.SECOND.replace("SIZE", "0.5").replace("RATE", "2"))
    zipfile.ZipFile(made).extractall(tmp_path / "installed")
    code = "import torch.nn.functional as F, torch; print(F.silu(torch.ones(1)).item())"
    start = f"import site; site.addsitedir({str(tmp_path / 'installed')!r}); {code}"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.731059 * (1 + 0.5 * math.sin(2)), rel=1e-4)
