"""A budget is one number and one unit, or one sentence."""

import pytest

from subeight.errors import InputError
from subeight.map.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3.5 bits", "bits", 3.5),
        ("3bits", "bits", 3.0),
        ("1 bit", "bits", 1.0),
        ("90 MB", "bytes", 90e6),
        ("1.5 GiB", "bytes", 1.5 * 2**30),
        ("500000 B", "bytes", 5e5),
        ("kl 0.05", "kl", 0.05),
        ("KL 5e-3", "kl", 5e-3),
        ("latency 20 ms", "latency", 0.02),
        ("Latency 0.5ms", "latency", 5e-4),
    ],
)
def test_budgets(text: str, kind: str, value: float) -> None:
    found = parse_budget(text)
    assert (found.kind, found.value) == (kind, value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3.5",
        "bits",
        "3.5 bytes per weight",
        "90",
        "MB",
        "kl",
        "kl -1",
        "-3 bits",
        "3,5 bits",
        "nll 3",
        "20 ms",
        "latency 2",
    ],
)
def test_others_are_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"say for instance '3\.5 bits', '90 MB', 'kl 0\.05' or 'latency 20 ms'"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0 bits", "0 MB", "kl 0", "latency 0 ms"])
def test_nothing_buys_nothing(text: str) -> None:
    with pytest.raises(InputError, match="buys nothing"):
        parse_budget(text)
