"""Fails where a test was skipped that is not on the fixed list of allowed skips.

python .ci/skips.py results.xml [--closing-line]
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# (what the reason or the test's id says, why it may be skipped)
ALLOWED = [
    ("cuda", "no CUDA device on the machines that run this"),
    ("no c++ compiler", "the kernels in C++ are optional"),
    ("no bf16 products", "the CPU has none"),
    ("no products of bytes", "the CPU has none"),
    ("subeight[tasks]", "lm-eval is an optional extra"),
    ("llama_cpp_python may name", "a peer that is built from source for twenty minutes; benchmarks/served.py runs it"),
]
if not (Path(__file__).resolve().parents[2] / "shared" / "data").is_dir():
    ALLOWED += [("is not in", "no models beside the checkout"), ("needs ../shared", "no models beside the checkout")]


def main() -> None:
    """Reads pytest's JUnit file."""
    root = ElementTree.parse(sys.argv[1]).getroot()
    cases = list(root.iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    wrong = []
    for case in skipped:
        name = f"{case.get('classname')}.{case.get('name')}"
        reason = case.find("skipped").get("message", "")
        if not any(word in f"{name} {reason}".lower() for word, _ in ALLOWED):
            wrong.append(f"{name}: {reason}")
    for line in wrong:
        print(f"skipped, but not on the list: {line}")
    if "--closing-line" in sys.argv:
        passed = len(cases) - len(skipped) - len(failed)
        print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
