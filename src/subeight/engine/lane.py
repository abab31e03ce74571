"""One recipe on its way through the model: what it does to each block, and the shards that it leaves."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subeight.engine.job import Job, Outcome, Settings
from subeight.engine.kept import keep_codes, kept_codes
from subeight.engine.moves import Tap, move_block, moving
from subeight.engine.rounding import needs, polish_of, round_group, round_weight, rounder_of
from subeight.engine.shards import block_tensors, checkpoint_config, shell_tensors
from subeight.engine.tunable import rescaled
from subeight.engine.tuning import States, tune_block, tuned
from subeight.export.checkpoint import ShardWriter
from subeight.export.gguf import FILE as GGUF_FILE
from subeight.formats import Format, QTensor, Scales, find_scales
from subeight.models.block import Block, Written
from subeight.models.folds import ModelFolds
from subeight.models.model import Model
from subeight.models.read.quantized import quantized_tensors
from subeight.models.read.safetensors import Stored, index_file
from subeight.models.stats import GATHERED, Stats
from subeight.models.structure import InputGroup, LinearView
from subeight.models.tap import chunks
from subeight.models.weights import StoredWeights
from subeight.records.files import atomic_write

# Files of a run that may lie beside the checkpoint's own.
RUN_FILES = frozenset(
    {"run.json", "record.json", "plan.json", "recipe.yaml", "report.html", "samples.parquet", ".blocks", GGUF_FILE}
)
UNLIMITED = 1 << 62


@dataclass
class Rounded:
    """What was decided about the linears of a block so far, by name."""

    codes: dict[str, QTensor] = field(default_factory=dict)
    inputs: dict[str, tuple[Format, Scales | None]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


class Lane:
    """Carries out one job block by block; finished blocks are read back instead of done again."""

    def __init__(self, model: Model, job: Job, settings: Settings) -> None:
        self.model = model
        self.job = job
        self.settings = settings
        self.plan = job.plan
        self._folds = ModelFolds(model)
        self.folder = job.directory / ".blocks"  # what a run needs to go on
        self.shell_values: dict[str, Tensor] = {}  # tuned values of parameters outside the blocks
        self.seconds = 0.0  # spent on this recipe, its share of what is shared included
        self.writer = ShardWriter(
            job.directory,
            job.exporter,
            len(model.skeleton.blocks) + 1,
            model.skeleton.tied_names,
            beside=RUN_FILES,
        )

    @property
    def finished(self) -> int:
        """How many blocks, from the first on, are done."""
        count = 0
        while count < len(self.model.skeleton.blocks) and self.writer.has(count):
            count += 1
        return count

    @property
    def reads(self) -> bool:
        """Whether any linear of the blocks is decided by what it reads."""
        return any(needs(self.plan, structure.groups, moves=True, rounds=True) for structure in self.model.structures)

    @property
    def compares(self) -> bool:
        """Whether a method of the blocks asks what the baseline's own activations are."""
        wanted = [needs(self.plan, each.groups, moves=True, rounds=True) for each in self.model.structures]
        return any(each & {"drift", "states"} for each in wanted)

    def quantize(
        self,
        block: Block,
        tap: Tap,
        states: Callable[[], States] | None = None,
        *,
        live: bool = True,
        exact: Block | None = None,
    ) -> None:
        """Quantizes a block and writes its shard; `tap` gathers what groups of it read, `states` are these themselves.

        A live block is this lane's own: it computes with what was rounded, in the end or (`tap: sequential`) as soon as
        it was. Otherwise it stays as it was, but for its moves, and the statistics are those from before them.
        `exact` is the baseline's block where `tap` compares with it.
        """
        columns: dict[str, Tensor] = {}
        if moving(self.plan, block):
            columns = move_block(block, self._folds[block.index], self.plan, tap, self._limit(), exact)
        done = Rounded()
        staged = live and self.plan.tap == "sequential"
        for stage in block.structure.stages if staged else [list(block.structure.groups)]:
            for part, wanted in self._parts(stage, done):
                tapped = tap(part, wanted) if wanted else {}
                for group in part:
                    stats = tapped.pop(group.name, None)
                    if stats is not None and not live and group.name in columns:
                        stats = stats.rescaled(columns[group.name])
                    self._round(block, group, stats, done)
                    if staged:
                        self._compute_with(block, group.linears, done)
        if live and not staged:
            self._compute_with(block, list(block.structure.linears()), done)
        self._tune(block, states, done)
        self._write(block, done)

    def _tune(self, block: Block, states: Callable[[], States] | None, done: Rounded) -> None:
        """The linears that are rounded together, from the codes that each got alone."""
        for method, views in tuned(block, self.plan).values():
            assert states is not None
            weights = {view.info.name: block.original(view) for view in views}
            codes, outcomes = tune_block(block, method, views, weights, done.codes, states(), self.settings.seed)
            done.codes |= codes
            before = {outcome.name: outcome.notes for outcome in done.outcomes}
            done.outcomes += [replace(one, notes={**before.get(one.name, {}), **one.notes}) for one in outcomes]
            self._compute_with(block, views, done)

    def _parts(self, stage: Sequence[InputGroup], done: Rounded) -> Iterator[tuple[list[InputGroup], frozenset[str]]]:
        """The groups of a stage that the plan decides about: those without statistics, then the others in chunks."""
        needed = {group.name: needs(self.plan, [group], moves=False, rounds=True) & GATHERED for group in stage}
        decided = [group for group in stage if any(self._is_open(view, done) for view in group.linears)]
        plain = [group for group in decided if not needed[group.name]]
        if plain:
            yield plain, frozenset()
        fed = [group for group in decided if needed[group.name]]
        wanted = frozenset().union(*(needed[group.name] for group in fed))
        for part in chunks(fed, self._limit(), wanted) if fed else ():
            yield part, wanted

    def _is_open(self, view: LinearView, done: Rounded) -> bool:
        return self.plan.site(view.info.name).weights is not None and view.info.name not in done.codes

    def _limit(self) -> int:
        return self.settings.max_memory or UNLIMITED

    def _round(self, block: Block, group: InputGroup, stats: Stats | None, done: Rounded) -> None:
        codes, outcomes = round_group(block, group, self.plan, stats, self.settings.seed)
        done.codes |= codes
        done.outcomes += outcomes
        for name in codes:
            format = self.plan.site(name).inputs
            if format is None:
                continue
            static = None
            if format.per == "tensor":
                assert stats is not None and stats.absmax is not None
                static = find_scales(stats.absmax[None], format)
            done.inputs[name] = (format, static)

    def _compute_with(self, block: Block, views: Sequence[LinearView], done: Rounded) -> None:
        """Lets the block compute with the codes of these linears, and rounds their inputs where the plan says so."""
        mine = [view for view in views if view.info.name in done.codes]
        for view in mine:
            name = view.info.name
            block.set_weight(view, self.job.exporter.as_loaded(self.plan.site(name), done.codes[name]))
        names = [view.info.name for view in mine]
        block.quantize_inputs({name: done.inputs[name] for name in names if name in done.inputs})

    def _write(self, block: Block, done: Rounded) -> None:
        notes = [outcome.to_dict() for outcome in done.outcomes]
        self.folder.mkdir(exist_ok=True)
        atomic_write(self.folder / f"{block.index:05d}.json", json.dumps(notes))
        if polish_of(self.plan) is not None:
            keep_codes(self._codes_path(block.index), done.codes)
        self._write_shard(block, done.codes, done.inputs)

    def _write_shard(
        self, block: Block, codes: Mapping[str, QTensor], inputs: Mapping[str, tuple[Format, Scales | None]]
    ) -> None:
        scales = {name: static.scales.cpu() for name, (_, static) in inputs.items() if static is not None}
        tensors = block_tensors(self.model, block.structure, block.stored, codes, self.plan, self.job.exporter, scales)
        self.writer.write(block.index, tensors)

    def _codes_path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"

    def kept_codes(self, index: int) -> dict[str, QTensor]:
        """The codes of a finished block, of a plan that tunes the whole model."""
        formats = {site.linear.name: site.weights for site in self.plan.quantized if site.weights is not None}
        return kept_codes(self._codes_path(index), formats)

    def rewrite(self, index: int, parameters: Mapping[str, Tensor]) -> None:
        """Writes a finished block again with these scales and vectors."""
        block = Block(self.model, index, self.settings.dtype, keep=True, written=self.written(index))
        codes = {name: rescaled(name, code, parameters) for name, code in self.kept_codes(index).items()}
        for name in block.stored.keys() & parameters.keys():
            block.stored[name] = parameters[name].to(block.stored[name].dtype)
        self._write_shard(block, codes, block.inputs)

    def written(self, index: int) -> Written:
        """The weights of a finished block as its shard has them."""
        stored: dict[str, Stored] = dict(index_file(self.writer.path(index)))
        config = self.job.exporter.quantization_config(self.plan.sites)
        if config is None:
            return Written(StoredWeights(stored, self.model.skeleton.model), None)
        codes, plain = quantized_tensors(config, stored)
        return Written(StoredWeights(plain, self.model.skeleton.model), codes)

    def write_shell(self) -> None:
        """Writes what lies outside the blocks, then the config, the index and the tokenizer."""
        index = len(self.model.skeleton.blocks)
        if not self.writer.has(index):
            tensors = shell_tensors(self.model, self.shell_codes(), self.plan, self.job.exporter, self.shell_values)
            self.writer.write(index, tensors)
        if self.model.source.gguf is not None:
            self.model.tokenizer().save_pretrained(self.job.directory)
        source = None if self.model.source.gguf is not None else self.model.directory
        self.writer.finish(checkpoint_config(self.model), self.plan.sites, source)

    def shell_codes(self) -> dict[str, QTensor]:
        """Codes of the embeddings and the head, where a rule names them."""
        codes: dict[str, QTensor] = {}
        for site in self.plan.sites:
            if site.linear.block is None and site.weights is not None:
                weight = self.model.weights.read(f"{site.linear.name}.weight").float()
                generator = torch.Generator().manual_seed(self.settings.seed)
                codes[site.linear.name] = round_weight(rounder_of(site), weight, site.weights, None, generator, {})
        return codes

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What each linear lost, of all blocks, by name."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.json")):
            found |= {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}
        return found

    def polish_notes(self) -> dict[str, Any] | None:
        """What tuning the whole model came to, where the plan asks for it."""
        path = self.folder / "polish" / "notes.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
