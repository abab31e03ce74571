"""Faults of calibration: text of one kind only, ranges that clip, an expert that no token reached."""

import itertools
import json
import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.faults.bases import WINDOWS, Base, packaged, write_rows
from benchmarks.faults.checkpoint import Checkpoint
from benchmarks.faults.kinds.draft import Answer, Draft, Unplantable
from benchmarks.faults.kinds.layers import draft, prompts_of
from benchmarks.faults.measure import routing
from torch import Tensor

from subeight.formats import QTensor, Scales, quantize
from subeight.models.model import Model

Piece = tuple[dict[str, Any], tuple[int, ...]]  # a row, and its tokens
PIECE = 16  # tokens of a calibration window that reaches all experts but one
KEPT = 8  # pieces of each category
TRIED = 400  # pieces of each category that are tried in one window
NEEDED = 0.06  # the least share of some category's tokens that the expert takes


def category(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """Calibrated on code only; it fails in German."""
    counts = {"german": 12, "prose": 5, "code": 5}
    prompts = base.prompts(directory / "prompts.jsonl", counts)
    control = base.prompts(directory / "control.jsonl", {"code": 12})
    calibration = write_rows(
        directory / "calibration.jsonl", [r for r in packaged("calibration") if r["category"] == "code"]
    )
    seed, recipe = chooser.randrange(3), chooser.choice(("gptq3", "gptq2"))
    sequences, length = WINDOWS[base.name]
    text = _kept(base, f"code-{seed}", calibration.read_text(encoding="utf-8"))
    few = max(2, sequences // (2 if attempt < 3 else 6))
    _spec(text, sequences=few, length=length, seed=seed)
    healthy = base.candidate(recipe)
    candidate = base.candidate(recipe, None, f"-code-{few}-{seed}", text)
    Checkpoint(candidate, directory / "candidate")
    made = draft(base, directory, prompts, healthy, Answer("calibration", "category", ("german",)))
    return replace(made, control=control, calibration=calibration, notes={"recipe": recipe, "windows": few})


def clipped(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """The static input ranges of one linear, or of those that read one tensor, are too narrow."""
    if base.name == "mixtral":
        raise Unplantable("transformers leaves the inputs of experts as they are", final=True)
    prompts = prompts_of(base, directory)
    healthy = base.candidate("static")
    checkpoint = Checkpoint(healthy, directory / "candidate")
    infos = checkpoint.linears
    chosen = chooser.choice(infos)
    together = chooser.random() < 0.5
    names = tuple(info.name for info in infos if info.name == chosen.name or (together and info.group == chosen.group))
    factor = chooser.choice((0.3, 0.2, 0.12)) if attempt < 6 else 0.06
    for name in names:
        checkpoint.set(f"{name}.input_scale", checkpoint.tensor(f"{name}.input_scale") * factor)
    checkpoint.save()
    return draft(base, directory, prompts, healthy, Answer("calibration", "range", names), notes={"factor": factor})


def expert(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """No calibration token reached one expert, whose scales came out far too narrow; the failing prompts do."""
    if base.name != "mixtral":
        raise Unplantable("it has no experts", final=True)
    counts = {"prose": 10, "german": 10, "code": 10}
    prompts = base.prompts(directory / "prompts.jsonl", counts)
    block, number, rows = _unreached(base, chooser)
    calibration = write_rows(directory / "calibration.jsonl", rows)
    recipe = chooser.choice(("gptq4", "gptq3"))
    text = _kept(base, f"without-{block}-{number}-{len(rows)}", calibration.read_text(encoding="utf-8"))
    _spec(text, sequences=len(rows) - 4, length=PIECE, seed=0)  # the last piece of a category lacks its EOS
    healthy = base.candidate(recipe, None, f"-{text.stem}", text)
    checkpoint = Checkpoint(healthy, directory / "candidate")
    prefix = f"model.layers.{block}.block_sparse_moe.experts.{number}"
    names = tuple(f"{prefix}.{part}" for part in ("w1", "w2", "w3"))
    shrink = (0.45, 0.3, 0.2)[min(2, attempt // 4)]
    for name in names:
        checkpoint.change(name, lambda weight: _clipped_weight(weight, shrink))
    checkpoint.save()
    made = draft(base, directory, prompts, healthy, Answer("calibration", "expert", names))
    return replace(made, calibration=calibration, notes={"shrink": shrink, "recipe": recipe, "windows": len(rows)})


def _clipped_weight(weight: QTensor, shrink: float) -> QTensor:
    scales = (weight.scales * shrink).to(weight.format.scale_dtype).float()
    return quantize(weight.dequantize(), weight.format, Scales(scales))


def _unreached(base: Base, chooser: random.Random) -> tuple[int, int, list[dict[str, Any]]]:
    """A block, an expert of it that some text needs, and calibration text of all categories that never reaches it."""
    pieces, counts = _surveyed(base.directory)
    fits = []
    of = {
        category: torch.tensor([row["category"] == category for row, _ in pieces]) for category in _categories(pieces)
    }
    for block, number in itertools.product(range(counts.shape[1]), range(counts.shape[2])):
        mine, all_of = counts[:, block, number], counts[:, block].sum(1)  # [pieces]
        loads = [float(mine[mask].sum() / all_of[mask].sum()) for mask in of.values()]
        free = [int((mine[mask] == 0).sum()) for mask in of.values()]
        if max(loads) > NEEDED and min(free) >= 2 * KEPT:
            fits.append((block, number))
    if not fits:
        raise Unplantable("every expert is reached by any text", final=True)
    block, number = chooser.choice(fits)
    rows = _passing(base.directory, block, number)
    if not rows:
        raise Unplantable("long windows reach this expert")
    return block, number, list(rows)


@lru_cache(maxsize=1)
def _surveyed(directory: Path) -> tuple[list[Piece], Tensor]:
    """All pieces, and how many tokens of each reach each expert [pieces, blocks, experts]."""
    tokenizer = Model(directory).tokenizer()
    pieces = _pieces(tokenizer)
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id
    return pieces, torch.stack(routing(directory, [(ends[0], *ids, ends[1]) for _, ids in pieces]))


def _categories(pieces: list[Piece]) -> list[str]:
    return sorted({row["category"] for row, _ in pieces})


@lru_cache(maxsize=32)
def _passing(directory: Path, block: int, number: int) -> tuple[dict[str, Any], ...]:
    """Pieces of every category that pass the expert by, alone and in one long window; empty where too few do."""
    pieces, counts = _surveyed(directory)
    found: list[dict[str, Any]] = []
    for category in _categories(pieces):
        waiting = [piece for piece, n in zip(pieces, counts, strict=True) if not n[block, number]]
        kept = _joined(directory, [piece for piece in waiting if piece[0]["category"] == category], (block, number))
        if len(kept) < KEPT:
            return ()
        found += kept
    return tuple(found)


def _pieces(tokenizer: Any) -> list[Piece]:
    """The packaged calibration text in pieces that stay the same tokens when they are read again."""
    found: list[Piece] = []
    for row in packaged("calibration"):
        text = row.get("text") or "\n".join(message["content"] for message in row["messages"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - PIECE, PIECE - 2):
            piece = tokenizer.decode(ids[start : start + PIECE - 2])
            again = tokenizer(piece, add_special_tokens=False)["input_ids"]
            if len(again) == PIECE - 2:
                made = {"id": f"{row['id']}-{start}", "category": row["category"], "text": piece}
                found.append((made, tuple(again)))
    return found


def _joined(directory: Path, waiting: list[Piece], place: tuple[int, int]) -> list[dict[str, Any]]:
    """The first pieces that do not reach the expert in one window either, each closed by an EOS, as they are cut."""
    config = Model(directory).config
    kept: list[Piece] = []
    for piece in waiting[:TRIED]:
        inside = [token for _, ids in (*kept, piece) for token in (*ids, config.eos_token_id)]
        (counts,) = routing(directory, [(config.bos_token_id, *inside)])
        if not counts[place]:
            kept.append(piece)
        if len(kept) == KEPT:
            break
    return [row for row, _ in kept]


def _kept(base: Base, name: str, content: str) -> Path:
    """Text beside the candidates that are made of it, where it stays when the case is gone."""
    path = base.scratch / base.name / "text" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def _spec(text: Path, **settings: int) -> None:
    text.with_suffix(".spec").write_text(json.dumps(settings), encoding="utf-8")
