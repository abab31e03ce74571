"""The pages of `verify` and `lock`: the verdict first, what changed, and nothing that breaks out of the page."""

from subeight.report import render
from tests.report import fixtures

NUMBERS = {
    "kl": 0.05,
    "verdict": "regressed",
    "words": [f"regressed: KL 0.0500 (locked 0.0300) {fixtures.HOSTILE}.", "It is the stack."],
    "differences": [
        {"metric": "kl", "locked": 0.03, "today": 0.05, "worse": 0.02, "worse_ci": [0.018, 0.023], "tolerance": 0.002,
         "verdict": "regressed", "more_tokens": None},
        {"metric": "top1", "locked": 0.9, "today": 0.9, "worse": 0.0, "worse_ci": None, "tolerance": 0.01,
         "verdict": "undecided", "more_tokens": None},
    ],
    "changes": [{"what": fixtures.HOSTILE, "before": "1", "after": None, "suspicion": "high", "package": True}],
    "probes": [{"name": "linear 9x9", "relation": "wrong", "error_before": 1e-7, "error_after": 0.3, "bound": 1e-6}],
    "replay": {"words": ["fast 2 is guilty."], "tests": [{"pinned": ["fast==1"], "share": 0.0}]},
}  # fmt: skip


def test_a_verification_is_drawn_verdict_first():
    page = render([fixtures.record("verify", NUMBERS, subject={"candidate": "int4", "baseline": "base"})])
    body = page[page.index("<main") :]
    assert body.index("regressed: KL 0.0500") < body.index("Against the lock") < body.index("What changed in the stack")
    assert "0.0180 to 0.0230" in body and "wrong, beyond its float64 error" in body
    assert "fast 2 is guilty." in body and "fast==1" in body
    assert fixtures.HOSTILE not in body


def test_an_unchanged_stack_and_an_old_record_are_drawn_too():
    for numbers in ({**NUMBERS, "changes": [], "probes": [], "replay": None}, {"verdict": "pass"}):
        page = render([fixtures.record("verify", numbers, subject={"candidate": "int4"})])
        assert "Nothing that the lock holds of the stack has changed." in page


def test_a_lock_is_drawn():
    numbers = {
        "lock": "subeight.lock", "lock_bytes": 9000, "tolerance": {"kl": 0.002},
        "probes": [{"name": "softmax 9x9", "error": 1e-7, "bound": 1e-6, "sha256": "0123456789abcdef"}],
    }  # fmt: skip
    page = render([fixtures.record("lock", numbers, subject={"candidate": "int4"})])
    assert "is locked in" in page and "0.00200" in page and "0123456789abcdef" in page and "9.00 kB" in page
