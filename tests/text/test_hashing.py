import hashlib
import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from subeight.text.hashing import hash_text, hash_tokens

ROWS = st.lists(st.lists(st.integers(0, 2**31), max_size=5), max_size=5)


def test_the_value_stands_still():
    """A new value here breaks the comparison with every record written before."""
    assert hash_tokens([[1, 2], [3]], [[True, False]], {"window": 512, "b": None}) == "cf765c231bcd6cb6"
    assert hash_text("ä") == hashlib.sha256("ä".encode()).hexdigest()[:16]


def test_another_process_agrees():
    code = "from subeight.text.hashing import hash_tokens;print(hash_tokens([[7, 8]], settings={'b': 1, 'a': 'x'}))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hash_tokens([[7, 8]], settings={"a": "x", "b": 1})


@given(ROWS, ROWS)
def test_different_rows_differ(one, other):
    assert (hash_tokens(one) == hash_tokens(other)) == (one == other)


def test_masks_and_settings_count():
    made = {
        hash_tokens([[1, 2]], masks, settings)
        for masks in ([], [[True, False]], [[False, True]])
        for settings in (None, {"window": 2}, {"window": 3})
    }
    assert len(made) == 9
    assert all(len(value) == 16 and json.dumps(int(value, 16)) for value in made)
