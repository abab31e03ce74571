"""What counts as right, and the scoreboard made of it."""

from benchmarks.faults.kinds import KINDS
from benchmarks.faults.kinds.draft import Answer
from benchmarks.faults.run import SETS, cases, judged
from benchmarks.faults.score import markdown, scoreboard, wilson

PAIR = Answer("layers", "pair", ("up", "down"))


def cause(suspect="layers", kind="scales", places=("q",)):
    return {"suspect": suspect, "kind": kind, "places": list(places)}


def test_right_is_suspect_kind_and_place():
    answer = Answer("layers", "format", ("q", "k"))
    assert judged(answer, [cause(kind="format")])[0]
    assert judged(answer, [cause(kind="format"), cause(kind="format", places=["k"])])[0]
    assert not judged(answer, [])[0]
    assert not judged(answer, [cause()])[0]
    assert not judged(answer, [cause(suspect="baseline", kind="format")])[0]
    assert not judged(answer, [cause(kind="format", places=["q", "o"])])[0]
    assert not judged(answer, [cause(kind="format", places=[])])[0]
    assert not judged(answer, [cause(kind="format"), cause(suspect="calibration", kind="category")])[0]


def test_of_a_pair_both_must_be_named():
    assert judged(PAIR, [cause(kind="pair", places=["up", "down"])])[0]
    assert not judged(PAIR, [cause(kind="pair", places=["up"])])[0]


def test_where_nothing_is_wrong_nothing_may_be_named():
    assert judged(Answer(), []) == (True, "nothing named")
    assert not judged(Answer(), [cause()])[0]


def test_the_sets_have_the_cases_that_they_promise():
    assert {name: len(cases(name)) for name in SETS} == {"small": 160, "smollm2": 40, "healthy": 100}
    for name in SETS:
        assert len(set(cases(name))) == len(cases(name))
        assert {kind for kind, _, _ in cases(name)} <= set(KINDS)


def test_wilson_as_in_the_books():
    assert wilson(0, 0) is None
    assert wilson(10, 10) == [0.7225, 1.0]
    assert wilson(81, 263) == [0.2553, 0.3662]  # Newcombe 1998, table I


def test_a_scoreboard_counts_right_wrong_and_false_culprits():
    def line(kind, right, **more):
        made = {"case": f"{kind}-dense-0", "kind": kind, "base": "dense", "right": right, "why": "", "seconds": 2.0}
        return {**made, "evaluations": 10, "block_forwards": 50.0, **more}

    board = scoreboard(
        [
            line("scales", True, recovered=0.45, loss=0.2, notes={"healthy": 0.1}, bytes_added=10, bytes=1000),
            line("scales", False),
            line("healthy", True),
            line("awq", False),
            line("package", None),
        ]
    )
    assert board["faulty"]["right"] == 1 and board["faulty"]["cases"] == 2
    assert board["not_planted"] == 1
    assert board["false_culprits"]["named"] == 1 and board["false_culprits"]["cases"] == 2
    assert board["local_repairs"]["of_the_fault"]["max"] == 0.9
    assert board["local_repairs"]["of_the_fault_80_percent"] == 1
    assert "| scales | 1 of 2 | 50%" in markdown(board)
