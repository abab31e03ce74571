"""A hand-made record of a map, as docs/map.md has it: a few places, known losses, known errors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subeight.map.mapfile import MapFile, read_map
from subeight.records import Coordinates, Record

BITS = {"int8:g64:sym": 8.25, "int4:g64:sym": 4.25, "int3:g64:sym": 3.25, "int2:g64:sym": 2.25}
BASE = {"int8:g64:sym": 1e-4, "int4:g64:sym": 2e-3, "int3:g64:sym": 1e-2, "int2:g64:sym": 6e-2}
ENGINES = ["vllm", "sglang", "transformers", "gguf", "subeight"]
ADDITIVITY = 1.5  # what the whole loses over the sum of its cells
SAMPLES = 16


def loss_of(place: dict[str, Any], format: str) -> float:
    """Smooth, different everywhere, and falling with the bits."""
    at = len(place["name"]) % 3 + (0 if place["block"] is None else place["block"])
    return BASE[format] * (1 + 0.7 * at)


def place(name: str, linears: Sequence[str], block: int | None, weights: int, **more: Any) -> dict[str, Any]:
    kept = {"name": name, "linears": list(linears), "kinds": [x.rsplit(".", 1)[-1] for x in linears], "block": block}
    kept |= {"kind": "linear" if block is not None else "head", "fusion": None, "weights": weights, "shapes": []}
    kept |= {"dtype": "bfloat16", "kept_bits": 16.0, "bits": dict(BITS), "runs_in": dict.fromkeys(BITS, ENGINES)}
    return kept | more


def places(blocks: int = 4, by: str = "group") -> list[dict[str, Any]]:
    """An embedding, attention and a down projection in every block; by linear, q and k are places of one fusion."""
    rows = [place("model.embed_tokens", ["model.embed_tokens"], None, 200_000, kind="embedding")]
    for block in range(blocks):
        root = f"model.layers.{block}"
        q, k = f"{root}.self_attn.q_proj", f"{root}.self_attn.k_proj"
        fusion = f"{root}.self_attn.k_proj+q_proj"
        if by == "group":
            rows.append(place(fusion, [q, k], block, 64_000, fusion=fusion))
        else:
            rows += [place(name, [name], block, 32_000, fusion=fusion) for name in (q, k)]
        rows.append(place(f"{root}.mlp.down_proj", [f"{root}.mlp.down_proj"], block, 96_000))
    return rows


def numbers(
    rows: list[dict[str, Any]],
    loss: Callable[[dict[str, Any], str], float] = loss_of,
    spread: float = 1.1,
    formats: Sequence[str] = tuple(BITS),
    by: str = "group",
) -> dict[str, Any]:
    """The numbers of a record; `spread` is the factor of every interval."""
    hard = 1 + 0.4 * np.sin(np.arange(SAMPLES))
    hard = hard / hard.mean()
    sums = {f: sum(loss(row, f) for row in rows if row["block"] is not None) for f in formats}
    return {
        "formats": list(formats), "by": by, "metric": "kl", "methods": ["rtn"], "recipe": "rtn-int4", "places": rows,
        "cells": [cell(row["name"], f, "damage", loss(row, f), spread) for row in rows for f in formats],
        "whole": {
            f: {"kl": ADDITIVITY * sums[f], "kl_ci": [0.9 * sums[f], 2 * sums[f]],
                "samples": (ADDITIVITY * sums[f] * hard).tolist()}
            for f in formats
        },
        "samples": [{"document": f"d{n}", "category": "prose", "tokens": 64.0} for n in range(SAMPLES)],
        "difficulty": {f: hard.tolist() for f in formats},
        "controls": {"no_swap": 0.0, "noise": [], "floor": None}, "cost": {"share": 0.1}, "priors": {},
    }  # fmt: skip


def cell(place: str, format: str, view: str, loss: float, spread: float = 1.1, **more: Any) -> dict[str, Any]:
    found = {"place": place, "format": format, "view": view, "kl": loss, "kl_ci": [loss / spread, loss * spread]}
    found |= {"tokens": 1024, "samples": SAMPLES, "prior": None, "output_error": None, "categories": {"prose": loss}}
    return found | more


def write(folder: Path, content: dict[str, Any], kind: str = "map", **more: Any) -> Path:
    """The record in a directory of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"coordinates": Coordinates(baseline="base", evaluation="text"), "settings": {"calibration": None}}
    (folder / "record.json").write_text(Record(kind=kind, numbers=content, **{**given, **more}).to_json())
    return folder


def read(folder: Path, **changes: Any) -> MapFile:
    """The default map, read back; `changes` are arguments of `numbers`."""
    by = changes.pop("by", "group")
    rows = changes.pop("rows", None) or places(by=by)
    return read_map(write(folder, numbers(rows, by=by, **changes)))
