from subeight.text import compare_coverage, scripts_of
from subeight.text.tokens import encode


def test_scripts():
    assert scripts_of("Aé ß, Жд 中文 かカ 한 ع α 1.5 ½ 😀") == {
        "Latin": 3,
        "Cyrillic": 2,
        "Han": 2,
        "Hiragana": 1,
        "Katakana": 1,
        "Hangul": 1,
        "Arabic": 1,
        "Greek": 1,
    }
    assert scripts_of("Ａｱ") == {"Latin": 1, "Katakana": 1}
    assert scripts_of("ª µ 𝐀 ʰ 12 !") == {}


def test_the_same_text_warns_of_nothing(plain):
    ids = [encode("the cat sat on the mat", plain)]
    found = compare_coverage(ids, ids, plain)
    assert (found.unseen_tokens, found.unseen_special, found.warnings) == (0.0, [], [])
    assert found.scripts_seen == found.scripts_reached == {"Latin": 1.0}


def test_another_script_and_chat_marks_are_warned_of(plain):
    seen = [encode("the cat sat on the mat", plain)]
    reached = [encode("<|im_start|>кот the<|im_end|>", plain)]
    found = compare_coverage(seen, reached, plain)
    assert found.scripts_reached == {"Cyrillic": 0.5, "Latin": 0.5}
    assert found.unseen_special == ["<|im_start|>", "<|im_end|>"]
    script, tokens, special = found.warnings
    assert "50.0% of the evaluation's letters are Cyrillic, of calibration's 0.0%" in script
    assert tokens.startswith(f"{found.unseen_tokens:.0%} of the evaluation's tokens")
    assert "<|im_start|>, <|im_end|>" in special
    assert found.as_dict()["warnings"] == found.warnings


def test_share_of_unseen_tokens(plain):
    found = compare_coverage([[10, 11]], [[10, 11], [12, 10]], plain)
    assert found.unseen_tokens == 0.25
    assert compare_coverage([[10]], [], plain).unseen_tokens == 0.0
