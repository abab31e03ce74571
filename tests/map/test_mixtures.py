"""Which allocations are measured as wholes: spread over the sizes, denser where the loss changes most."""

from pathlib import Path

import numpy as np

from subeight.map.mapfile import MapFile, Mixture, WholeLoss
from subeight.map.mixtures import next_mixtures
from tests.map.records import read


def bits(found: MapFile, formats: dict) -> float:
    inside = [place for place in found.places if place.inside]
    return 8 * sum(place.bytes(formats[place.name]) for place in inside) / sum(place.weights for place in inside)


def test_the_first_halve_the_range_and_keep_nothing(tmp_path: Path) -> None:
    found = read(tmp_path)
    chosen = next_mixtures(found, 3)
    sizes = sorted(bits(found, formats) for formats in chosen)
    assert len(chosen) == 3 and np.abs(np.array(sizes) - (2.25 + 6 * np.arange(1, 4) / 4)).max() < 0.6
    inside = {place.name for place in found.places if place.inside}
    for formats in chosen:
        assert {name for name, format in formats.items() if format} == inside


def test_the_next_one_lies_where_the_loss_fell_most(tmp_path: Path) -> None:
    found = read(tmp_path)
    (middle,) = next_mixtures(found, 1)
    ends = [found.whole[format].loss for format in (found.formats[0], found.formats[-1])]
    for loss, wider in ((ends[0] * 1.01, False), (ends[1] / 1.01, True)):
        measured = Mixture(middle, WholeLoss(loss, loss, loss, ()))
        (following,) = next_mixtures(MapFile(**{**vars(found), "mixtures": (measured,)}), 1)
        assert (bits(found, following) > bits(found, middle)) == wider


def test_no_more_than_there_are(tmp_path: Path) -> None:
    found = read(tmp_path)
    chosen = next_mixtures(found, 10_000)
    assert 3 < len(chosen) < 200 and len({tuple(sorted(f.items(), key=str)) for f in chosen}) == len(chosen)
