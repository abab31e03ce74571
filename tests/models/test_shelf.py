"""Tensors in a row come back with their bytes, from memory or from disk; the folder goes with the shelf."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from subeight.models.shelf import Kept, Shelf, keep


def values() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(3, 5, generator=generator).to(torch.bfloat16) for _ in range(4)]
    return [*made, torch.zeros(0, 5)]


@pytest.mark.parametrize(("limit", "on_disk"), [(None, 0), (60, 2), (0, 4)])
def test_what_has_no_room_lies_on_disk(tmp_path: Path, limit: int | None, on_disk: int) -> None:
    shelf = Shelf(limit, tmp_path)
    shelf.extend(values())  # 30 bytes each, the last none
    assert shelf.on_disk == on_disk
    for found, expected in zip(shelf, values(), strict=True):
        assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert [value.shape for value in shelf[1:3]] == [(3, 5), (3, 5)]


def test_a_value_that_goes_makes_room_for_another(tmp_path: Path) -> None:
    shelf = Shelf(30, tmp_path)
    shelf.extend(values()[:2])
    assert shelf.on_disk == 1
    shelf[0] = torch.zeros(0, 5)
    shelf[1] = shelf[1] * 2
    assert shelf.on_disk == 0 and torch.equal(shelf[1], values()[1] * 2)


def test_numbers_come_in_any_order(tmp_path: Path) -> None:
    shelf = Shelf(30, tmp_path)
    for number in (2, 0, 1):
        shelf.put(number, values()[number])
    assert all(torch.equal(a, b) for a, b in zip(shelf, values()[:3], strict=True))


def test_the_folder_goes_with_the_shelf(tmp_path: Path) -> None:
    shelf = Shelf(0, tmp_path / "scratch")
    shelf.extend(values())
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    del shelf
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_file_of_states_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    keep(path, values())
    whole = load_file(path)
    kept = Kept(path, torch.device("cpu"))
    assert len(kept) == len(whole) == 5
    for number, expected in enumerate(values()):
        assert torch.equal(kept[number], expected) and torch.equal(whole[f"{number:06d}"], expected)
    assert torch.equal(kept[1:3][1], values()[2])
