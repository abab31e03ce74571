"""What a page is made of: sections with figures, and what each kind of record adds to the summary."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import plotly.graph_objects as go

from subeight.records import Record
from subeight.report import sections
from subeight.report.markup import Html, Node


@dataclass(frozen=True)
class Picture:
    """A figure with its sentence: what to see in it. Narrower than `least` pixels it scrolls sideways by itself."""

    figure: go.Figure
    caption: str
    least: int = 0


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading: HTML and pictures in the order they are read."""

    title: str
    content: Sequence[Html | Picture]


@dataclass(frozen=True)
class Tile:
    """One number of the summary that stands out, its unit or interval, and what it is."""

    value: str
    note: str
    name: str


class Chapter(Protocol):
    """A file of `report/sections`, named for the kind of record that it draws."""

    ORDER: int

    def summary(self, records: list[Record], /) -> list[Node]: ...
    def tiles(self, records: list[Record], /) -> list[Tile]: ...
    def draw(self, records: list[Record], /) -> list[Section]: ...


def find_chapters() -> dict[str, Chapter]:
    """The chapters by kind of record, found by their files."""
    return {
        found.name: cast(Chapter, importlib.import_module(f"{sections.__name__}.{found.name}"))
        for found in pkgutil.iter_modules(sections.__path__)
    }
