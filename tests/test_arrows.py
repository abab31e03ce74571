"""Imports go down only: a room knows the rooms on lower floors, never those beside or above it.

The floors are those of the design. The report stands aside: it reads records, and no torch comes into it.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "subeight"
FLOORS = {
    "errors": -1,
    **dict.fromkeys(("formats", "text", "records"), 0),
    **dict.fromkeys(("kernels", "sweep"), 1),
    "models": 2,
    **dict.fromkeys(("methods", "kv", "evals"), 3),
    **dict.fromkeys(("export", "recipes"), 4),
    **dict.fromkeys(("engine", "probe", "lock"), 5),
    **dict.fromkeys(("inspect", "map", "diagnose", "train", "advise"), 6),
    "verbs": 7,
    "cli": 8,
}
ASIDE = {"report": ("records", "errors")}  # what it may read; verbs and above may call it
FACE = "subeight"  # the package itself: the public face, above all
EXTRAS = ("lm_eval", "datasets", "peft", "ray")  # optional, so imported where they are used
TORCHLESS = ("records", "report")
TORCH = ("torch", "transformers", "safetensors", "accelerate", "jaxtyping")


@dataclass(frozen=True)
class Import:
    """One name that a file imports, absolute, and where."""

    name: str
    line: int
    inside: bool  # a function


def imports_of(path: Path, root: Path) -> list[Import]:
    """Every import of a file; `from a import b` gives `a.b`, relative ones are made absolute."""
    package = [root.name, *path.relative_to(root).parent.parts]
    found: list[Import] = []

    def walk(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            found.extend(Import(f"{base}.{alias.name}", node.lineno, inside) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def room_of(name: str, root: Path) -> str | None:
    """The room that an import leads to: its name, `subeight` for the public face, None for other packages."""
    parts = name.split(".")
    if parts[0] != root.name:
        return None
    if len(parts) == 1:
        return FACE
    is_room = (root / parts[1]).is_dir() or (root / f"{parts[1]}.py").is_file()
    return parts[1] if is_room else FACE


def wrong_arrows(root: Path) -> list[str]:
    """Every import that goes up or sideways, or stands inside a function."""
    wrong = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        here = relative.parts[0].removesuffix(".py")
        if len(relative.parts) == 1 and here != "errors":
            here = FACE
        for found in imports_of(path, root):
            place = f"{relative}:{found.line} imports {found.name}"
            if found.inside and found.name.split(".")[0] not in EXTRAS:
                wrong.append(f"{place} inside a function")
            there = room_of(found.name, root)
            if there is not None and there != here and not _allowed(here, there):
                wrong.append(f"{place}: {here} may not know {there}")
    return wrong


def _allowed(here: str, there: str) -> bool:
    if here == FACE:
        return True
    if here in ASIDE:
        return there in ASIDE[here]
    if there in ASIDE:
        return FLOORS.get(here, 0) >= FLOORS["verbs"]
    return here in FLOORS and there in FLOORS and FLOORS[there] < FLOORS[here]


def torch_ways(root: Path, rooms: tuple[str, ...]) -> list[str]:
    """The ways, file by file, on which the rooms come to torch."""
    waiting = [(path, str(path.relative_to(root))) for room in rooms for path in (root / room).rglob("*.py")]
    seen: set[Path] = set()
    found = []
    while waiting:
        path, way = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for one in imports_of(path, root):
            if one.name.split(".")[0] in TORCH:
                found.append(f"{way} -> {one.name}")
            waiting += [(file, f"{way} -> {file.relative_to(root)}") for file in _files_of(one.name, root)]
    return found


def _files_of(name: str, root: Path) -> list[Path]:
    """The files below the public face that an import runs: those of every package on the way, and the module."""
    parts = name.split(".")
    if parts[0] != root.name:
        return []
    steps = [root.joinpath(*parts[1:end]) for end in range(2, len(parts) + 1)]
    candidates = [file for step in steps for file in (step / "__init__.py", step.with_suffix(".py"))]
    return [file for file in candidates if file.is_file()]


def test_imports_go_down_only():
    assert wrong_arrows(SOURCE) == []


def test_every_room_has_a_floor():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= FLOORS.keys() | ASIDE.keys()


def test_report_and_records_come_to_torch_on_no_way():
    assert torch_ways(SOURCE, TORCHLESS) == []


def test_report_and_records_run_without_torch():
    # `import subeight` shows the whole public face, torch included; so the rooms are loaded below a bare package.
    program = (
        "import sys, types\n"
        f"bare = types.ModuleType('subeight'); bare.__path__ = [{str(SOURCE)!r}]\n"
        "sys.modules['subeight'] = bare\n"
        "import subeight.records, subeight.report, subeight.report.page\n"
        "from subeight.report import build\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


GOOD = {
    "__init__.py": "from subeight.verbs import quantize\n",
    "errors.py": "class E(Exception): ...\n",
    "formats/__init__.py": "from subeight.errors import E\n",
    "records/__init__.py": "from subeight.records.record import R\n",
    "records/record.py": "from ..errors import E\nR = 1\n",
    "models/__init__.py": "import torch\nfrom subeight.formats import E\n",
    "evals/__init__.py": "def f():\n    import lm_eval\n",
    "engine/__init__.py": "from subeight.models import torch\nimport subeight.evals\n",
    "report/__init__.py": "from subeight.records import R\n",
    "verbs/__init__.py": "from subeight.report import R\nfrom subeight import engine\nquantize = 1\n",
    "cli/__init__.py": "from .. import verbs\n",
}
BAD = {
    "up": ("models/__init__.py", "from subeight.engine import x\n"),
    "up, relative": ("models/__init__.py", "from ..engine import x\n"),
    "up, whole module": ("formats/__init__.py", "import subeight.models\n"),
    "up, from the package": ("models/__init__.py", "from subeight import engine\n"),
    "one floor": ("formats/__init__.py", "from subeight.records import R\n"),
    "the public face": ("engine/__init__.py", "from subeight import quantize\n"),
    "errors know nothing": ("errors.py", "from subeight.records import R\n"),
    "report reads records only": ("report/__init__.py", "from subeight.formats import E\n"),
    "report is called from above": ("engine/__init__.py", "from subeight.report import R\n"),
    "inside a function": ("verbs/__init__.py", "quantize = 1\ndef f():\n    from subeight.models import E\n"),
    "inside a method": ("verbs/__init__.py", "quantize = 1\nclass A:\n    def f(self):\n        import json\n"),
    "under a condition": ("models/__init__.py", "if True:\n    from subeight.verbs import quantize\n"),
    "unknown room": ("extra/__init__.py", "from subeight.records import R\n"),
}


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "subeight" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "subeight"


def test_a_good_tree_passes(tmp_path):
    root = _tree(tmp_path, GOOD)
    assert wrong_arrows(root) == []
    assert torch_ways(root, TORCHLESS) == []


@pytest.mark.parametrize("case", BAD)
def test_each_wrong_import_is_found_alone(tmp_path, case):
    name, text = BAD[case]
    wrong = wrong_arrows(_tree(tmp_path, GOOD | {name: text}))
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{name}:")


@pytest.mark.parametrize(
    "changed",
    [
        {"records/record.py": "import torch\nR = 1\n"},
        {"records/record.py": "R = 1\ndef f():\n    from transformers import AutoModel\n"},
        {"report/__init__.py": "from subeight.models import x\n"},
        {"report/__init__.py": "import subeight.engine\n"},
    ],
)
def test_torch_is_found_also_behind_other_rooms(tmp_path, changed):
    assert torch_ways(_tree(tmp_path, GOOD | changed), TORCHLESS)
