"""`report`: one HTML page out of any number of runs."""

from pathlib import Path

from subeight.errors import RecordError
from subeight.records import Record, Run
from subeight.report import build


def report(runs: list[str], *, out: Path | None = None) -> Path:
    """Draws the records of all `runs` (run directories or record files) on one self-contained page.

    Raises:
        RecordError: there is no record in one of them.
    """
    records: list[Record] = []
    for name in runs:
        path = Path(name)
        found = Run.open(path).records() if path.is_dir() else [Record.read(path)]
        if not found:
            raise RecordError(f"{name} has no record yet; let its command finish first.")
        records += found
    return build(records, out or Path("report.html"))
