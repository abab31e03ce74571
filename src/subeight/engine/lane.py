"""One recipe on its way through the model: what it does to each block, and the shards that it leaves."""

import json
from typing import Any

import torch
from torch import Tensor

from subeight.engine.job import Job, Outcome, Settings
from subeight.engine.moves import move_block, moving
from subeight.engine.rounding import needs, round_group, rounder_of
from subeight.engine.shards import block_tensors, checkpoint_config, shell_tensors
from subeight.engine.streams import Stream
from subeight.export.checkpoint import ShardWriter
from subeight.formats import Format, QTensor, Scales, find_scales
from subeight.models.block import Block, Written
from subeight.models.folds import Fold, block_folds
from subeight.models.model import Model
from subeight.models.read.quantized import quantized_tensors
from subeight.models.read.safetensors import Stored, index_file
from subeight.models.shell import Shell
from subeight.models.stats import Stats
from subeight.models.tap import chunks, gather
from subeight.models.weights import StoredWeights
from subeight.records.files import atomic_write

# Files of a run that may lie beside the checkpoint's own.
RUN_FILES = frozenset(
    {"run.json", "record.json", "plan.json", "recipe.yaml", "report.html", "samples.parquet", ".blocks"}
)


class Lane:
    """Carries out one job block by block; finished blocks are read back instead of done again."""

    def __init__(self, model: Model, job: Job, settings: Settings) -> None:
        self.model = model
        self.job = job
        self.settings = settings
        self.plan = job.plan
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

    def quantize(self, block: Block, shell: Shell, stream: Stream) -> None:
        """Quantizes a block whose inputs come from this lane's own stream; it computes with the result afterwards."""
        groups = block.structure.groups
        moves = moving(self.plan, block)
        stats: dict[str, Stats] = {}
        once = self.plan.tap == "parallel"
        if moves or once:
            wanted = needs(self.plan, groups, moves=True, rounds=once)
            stats = self._gather(block, list(groups), shell, stream, wanted)
        if moves:
            stats = move_block(block, self._folds(block.index), self.plan, stats)
        rounds = needs(self.plan, groups, moves=False, rounds=True)
        codes: dict[str, QTensor] = {}
        outcomes: list[Outcome] = []
        scales: dict[str, Tensor] = {}
        for stage in block.structure.stages:
            for part in chunks(stage, self._limit(), rounds):
                tapped = stats if once else self._gather(block, part, shell, stream, rounds) if rounds else {}
                for group in part:
                    done, lost = round_group(block, group, self.plan, tapped.get(group.name), self.settings.seed)
                    self._put(block, group.linears, done, tapped.get(group.name), scales)
                    codes |= done
                    outcomes += lost
        self._write(block, codes, scales, outcomes)

    def quantize_exact(self, block: Block, stats: dict[str, Stats]) -> None:
        """Quantizes a block from statistics of the baseline's own activations; the block is this lane's to change."""
        if moving(self.plan, block):
            stats = move_block(block, self._folds(block.index), self.plan, dict(stats))
        codes: dict[str, QTensor] = {}
        outcomes: list[Outcome] = []
        scales: dict[str, Tensor] = {}
        for group in block.structure.groups:
            done, lost = round_group(block, group, self.plan, stats.get(group.name), self.settings.seed)
            self._put(block, (), done, stats.get(group.name), scales)
            codes |= done
            outcomes += lost
        self._write(block, codes, scales, outcomes)

    def _folds(self, index: int) -> list[Fold]:
        return block_folds(self.model, Block(self.model, index, torch.float32))

    def _limit(self) -> int:
        return self.settings.max_memory or (1 << 62)

    def _gather(
        self, block: Block, groups: list, shell: Shell, stream: Stream, wanted: frozenset[str]
    ) -> dict[str, Stats]:
        found: dict[str, Stats] = {}
        for part in chunks(groups, self._limit(), wanted):
            found |= gather(block, part, stream.batches(shell, block.index), wanted)
        return found

    def _put(
        self,
        block: Block,
        views: Any,
        codes: dict[str, QTensor],
        stats: Stats | None,
        scales: dict[str, Tensor],
    ) -> None:
        """Lets the block compute with the codes, and rounds inputs where the plan says so."""
        inputs: dict[str, tuple[Format, Scales | None]] = {}
        for name in codes:
            site = self.plan.site(name)
            if site.inputs is None:
                continue
            static = None
            if site.inputs.per == "tensor":
                assert stats is not None and stats.absmax is not None
                static = find_scales(stats.absmax[None].cpu(), site.inputs)
                scales[name] = static.scales
            inputs[name] = (site.inputs, static)
        for view in views:
            if view.info.name in codes:
                block.set_weight(view, self.job.exporter.as_loaded(self.plan.site(view.info.name), codes[view.info.name]))
        block.quantize_inputs(inputs)

    def _write(
        self, block: Block, codes: dict[str, QTensor], scales: dict[str, Tensor], outcomes: list[Outcome]
    ) -> None:
        tensors = block_tensors(self.model, block.structure, block.stored, codes, self.plan, self.job.exporter, scales)
        notes = [outcome.to_dict() for outcome in outcomes]
        folder = self.job.directory / ".blocks"
        folder.mkdir(exist_ok=True)
        atomic_write(folder / f"{block.index:05d}.json", json.dumps(notes))
        self.writer.write(block.index, tensors)

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
            codes = self._shell_codes()
            self.writer.write(index, shell_tensors(self.model, codes, self.plan, self.job.exporter))
        if self.model.source.gguf is not None:
            self.model.tokenizer().save_pretrained(self.job.directory)
        source = None if self.model.source.gguf is not None else self.model.directory
        self.writer.finish(checkpoint_config(self.model), self.plan.sites, source)

    def _shell_codes(self) -> dict[str, QTensor]:
        """Codes of the embeddings and the head, where a rule names them."""
        codes: dict[str, QTensor] = {}
        for site in self.plan.sites:
            if site.linear.block is None and site.weights is not None:
                weight = self.model.weights.read(f"{site.linear.name}.weight").float()
                generator = torch.Generator().manual_seed(self.settings.seed)
                codes[site.linear.name] = rounder_of(site).round(weight, site.weights, None, generator)
        return codes

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What each linear lost, of all blocks, by name."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.job.directory / ".blocks").glob("*.json")):
            found |= {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}
        return found
