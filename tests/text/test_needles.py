import pytest

from subeight.errors import TextError
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked
from subeight.text.needles import DIGITS, needles


@pytest.fixture(scope="module")
def tokenizer():
    return Model(unpacked()).tokenizer()


@pytest.mark.parametrize("count", [1, 4])
def test_the_number_is_there_once_at_its_depth_and_asked_for(tokenizer, count):
    for found in needles(tokenizer, [300, 1000], [0.0, 0.5, 1.0], count, repeats=2):
        assert 0.9 * found.length <= len(found.ids) <= found.length
        story, answer = tokenizer.decode(found.ids[: found.answer]), tokenizer.decode(found.ids[found.answer :])
        number = answer.strip()
        assert len(number) == DIGITS and number.isdigit() and answer == f" {number}"
        assert story.count(number) == 1 and story.count("pass number") == count + 1
        place = story.index(number) / len(story)
        assert abs(place - found.depth) < 0.15


def test_the_seed_decides(tokenizer):
    one, again, other = (needles(tokenizer, [200], [0.5], seed=seed) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("length, count, words", [(20, 1, "longer context"), (500, 17, "give 1 to 16")])
def test_what_cannot_be_hidden(tokenizer, length, count, words):
    with pytest.raises(TextError, match=words):
        needles(tokenizer, [length], [0.5], count)
