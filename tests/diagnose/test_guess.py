import json

import pytest

from subeight.diagnose.baseline import guess_baseline
from subeight.errors import InputError
from subeight.models.model import Model
from tests.verbs import small


@pytest.fixture
def candidate(tmp_path):
    return small.save_llama(tmp_path / "candidate")


def named(candidate, value):
    path = candidate / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": value}))


def test_nothing_said(candidate):
    with pytest.raises(InputError, match="give --baseline"):
        guess_baseline(Model(candidate))


def test_the_config_names_a_directory(candidate, tmp_path):
    named(candidate, str(small.save_llama(tmp_path / "base")))
    assert guess_baseline(Model(candidate)) == str(tmp_path / "base")


def test_a_checkpoint_that_names_itself_says_nothing(candidate):
    named(candidate, str(candidate))
    with pytest.raises(InputError, match="does not say"):
        guess_baseline(Model(candidate))


@pytest.mark.parametrize(
    "front", ["base_model: owner/name", 'base_model: "owner/name"', "base_model:\n- owner/name\n- other/name"]
)
def test_a_model_card(front, candidate):
    (candidate / "README.md").write_text(f"---\nlicense: mit\n{front}\n---\n# A model\nbase_model: wrong/one\n")
    assert guess_baseline(Model(candidate)) == "owner/name"


def test_a_record_of_ours_and_what_lies_here_comes_first(candidate, tmp_path):
    (candidate / "README.md").write_text("---\nbase_model: owner/name\n---\n")
    (candidate / "record.json").write_text(json.dumps({"subject": {"model": str(small.save_llama(tmp_path / "b"))}}))
    assert guess_baseline(Model(candidate)) == str(tmp_path / "b")
    (candidate / "record.json").write_text(json.dumps({"subject": {"model": "gone"}}))
    assert guess_baseline(Model(candidate)) == "owner/name"


def test_a_broken_record_is_passed_over(candidate):
    (candidate / "record.json").write_text("{")
    (candidate / "README.md").write_text("no front matter\nbase_model: owner/name\n")
    with pytest.raises(InputError):
        guess_baseline(Model(candidate))
