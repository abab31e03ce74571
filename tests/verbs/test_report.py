import pytest

from subeight import report
from subeight.errors import RecordError

pytestmark = pytest.mark.usefixtures("no_check")


def test_runs_and_record_files_are_drawn_on_one_page(house, made, tmp_path):
    page = report([str(made("gptq").directory), str(made("rtn").directory / "record.json")], out=tmp_path / "all.html")
    text = page.read_text()
    assert page == tmp_path / "all.html"
    assert made("gptq").record.coordinates.recipe in text and made("rtn").record.coordinates.recipe in text


def test_a_directory_without_records_is_refused(house, tmp_path):
    for path, message in ((tmp_path, "not a run directory"), (tmp_path / "missing", "cannot be read")):
        with pytest.raises(RecordError, match=message):
            report([str(path)], out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_did_not_end_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1, "verb": "quantize", "identity": null}')
    with pytest.raises(RecordError, match="no record yet"):
        report([str(tmp_path)], out=tmp_path / "page.html")
