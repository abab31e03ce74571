import pytest

from subeight.errors import TextError
from subeight.text.long import long_windows
from tests.text.conftest import make_tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_windows_of_exactly_the_context(bos, tmp_path):
    tokenizer = make_tokenizer(bos=bos)
    (tmp_path / "a.txt").write_text("one two three " * 50)
    (tmp_path / "b.txt").write_text("four five six " * 50)
    windows = long_windows([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer, 40, 3)
    assert [len(window) for window in windows] == [40, 40, 40]
    assert all(window[0] == 0 for window in windows) or not bos
    assert windows == long_windows([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer, 40, 100)[:3]


def test_too_little_text(tmp_path):
    (tmp_path / "a.txt").write_text("one two three")
    with pytest.raises(TextError, match="give longer text"):
        long_windows([tmp_path / "a.txt"], make_tokenizer(), 4000, 3)
