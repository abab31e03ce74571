"""Reading a map's record: what it holds, and one sentence for what is not a map."""

import json
from pathlib import Path

import pytest

from subeight.errors import RecordError
from subeight.map.mapfile import RESCUE, read_map
from subeight.records import Run
from tests.map.records import BITS, cell, numbers, places, read, write


def test_places_cells_and_wholes_are_read(tmp_path: Path) -> None:
    content = numbers(places())
    content["cells"].append(cell("model.layers.0.mlp.down_proj", "int2:g64:sym", RESCUE, 0.3))
    found = read_map(write(tmp_path, content))
    assert found.formats == tuple(BITS) and found.by == "group" and found.metric == "kl"
    assert len(found.places) == 9 and found.weights == 4 * 160_000
    down = next(place for place in found.places if place.name.endswith("0.mlp.down_proj"))
    assert down.bytes("int4:g64:sym") == 96_000 * 4.25 / 8 and down.bytes(None) == 96_000 * 2
    assert found.cell(down.name, "int2:g64:sym", RESCUE).loss == 0.3
    assert found.cell(down.name, "int8:g64:sym", RESCUE) is None
    assert found.whole["int2:g64:sym"].loss > found.whole["int8:g64:sym"].loss
    assert read_map(tmp_path / "record.json").hash == found.hash
    assert not found.places[0].inside


def test_another_record_has_another_hash(tmp_path: Path) -> None:
    assert read(tmp_path / "a").hash != read(tmp_path / "b", spread=1.2).hash


def test_a_map_cut_off_in_the_middle(tmp_path: Path) -> None:
    Run.create(tmp_path / "map", "map", {"a": 1})
    with pytest.raises(RecordError, match=r"cut off in the middle; run the same map command again, it continues\.$"):
        read_map(tmp_path / "map")


def test_what_is_no_map_is_one_sentence(tmp_path: Path) -> None:
    Run.create(tmp_path / "other", "evaluate", {})
    with pytest.raises(RecordError, match="a run of `evaluate`, not a map"):
        read_map(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no run, not a map"):
        read_map(tmp_path / "empty")
    with pytest.raises(RecordError, match="is a record of `evaluate`, not of a map"):
        read_map(write(tmp_path / "kind", {}, kind="evaluate"))
    with pytest.raises(RecordError, match="cannot be read"):
        read_map(tmp_path / "nowhere.json")


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path / "half", numbers(places()))
    whole = (tmp_path / "half" / "record.json").read_text()
    (tmp_path / "half" / "record.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="is not JSON"):
        read_map(tmp_path / "half")
    values = json.loads(whole)
    del values["numbers"]["cells"][0]["kl_ci"]
    (tmp_path / "half" / "record.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"is a damaged map \(it has no 'kl_ci'\)"):
        read_map(tmp_path / "half")
    values["numbers"]["places"] = []
    values["numbers"]["cells"] = []
    (tmp_path / "half" / "record.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match="without a place or a format"):
        read_map(tmp_path / "half")
