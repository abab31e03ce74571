"""What a block is made of, found by running it on the meta device: its linears, which of them read one tensor
(`InputGroup`), in which order, and which norm wrote that tensor. No weight is read for it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from subeight.errors import ModelError
from subeight.models.calls import Call, record_calls
from subeight.models.families import FUSED_BY_ENGINES, FUSED_EXPERTS, ROUTER_TAILS
from subeight.models.fused import Part, parts_of, tails_of
from subeight.models.linear_info import LinearInfo
from subeight.models.skeleton import Skeleton
from subeight.models.watch import Watcher, identity
from subeight.models.weights import checkpoint_names, natural


@dataclass(frozen=True)
class LinearView:
    """One 2-D weight [out, in] as a view of a parameter: a Linear's, a Conv1D's transposed, an expert's slice."""

    info: LinearInfo
    parameter: str
    bias: str | None = None
    transposed: bool = False
    expert: int | None = None
    rows: tuple[int, int] | None = None
    step: int = 1
    whole: str | None = None  # the checkpoint's tensor, where it stores all experts as one

    def of(self, parameter: Tensor) -> Tensor:
        """The weight [out, in] inside `parameter`; writing to it writes the parameter."""
        value = parameter if self.expert is None else parameter[self.expert]
        value = value.T if self.transposed else value
        return value if self.rows is None else value[self.rows[0] : self.rows[1] : self.step]


@dataclass(frozen=True)
class InputGroup:
    """The linears that read one tensor: one tap, one Hessian. `source` is shared by groups whose inputs are rows of
    one tensor (the experts of a layer); `norm` is the module that wrote it, where a norm did."""

    name: str
    linears: tuple[LinearView, ...]
    stage: int
    source: str
    norm: str | None

    @property
    def width(self) -> int:
        return self.linears[0].info.shape[1]

    @property
    def is_expert(self) -> bool:
        return self.linears[0].expert is not None


@dataclass(frozen=True)
class Structure:
    """The groups of one block, in data order."""

    groups: tuple[InputGroup, ...]

    def linears(self) -> Iterator[LinearView]:
        for group in self.groups:
            yield from group.linears

    @property
    def stages(self) -> list[list[InputGroup]]:
        """Groups that can be tapped in one pass because none of them feeds another."""
        found: dict[int, list[InputGroup]] = {}
        for group in self.groups:
            found.setdefault(group.stage, []).append(group)
        return [found[stage] for stage in sorted(found)]


class _Discovery:
    """One watched run of a block on meta; collects inputs in the order in which they are read."""

    def __init__(self, block: nn.Module) -> None:
        self.parameters = {id(p): name for name, p in block.named_parameters()}
        self.modules = dict(block.named_modules())
        self.readers: dict[tuple, list[tuple[str, bool]]] = {}
        self.writers: dict[tuple, str] = {}
        self.experts: dict[str, tuple] = {}
        self._alive: list[Tensor] = []

    def run(self, block: nn.Module, call: Call, hidden: Tensor) -> None:
        hooks = []
        for name, module in block.named_modules():
            if any(p.dim() == 3 and key in FUSED_EXPERTS for key, p in module.named_parameters(recurse=False)):
                module.forward = partial(self._experts, name)
            else:
                hooks.append(module.register_forward_hook(partial(self._wrote, name)))
        with Watcher(self._seen), torch.no_grad():
            block(hidden, *call[0], **call[1])
        for hook in hooks:
            hook.remove()

    def _seen(self, weight: Tensor, value: Tensor, transposed: bool) -> None:
        name = self.parameters.get(id(weight))
        if name is not None and weight.dim() == 2:
            self._alive.append(value)
            self.readers.setdefault(identity(value), []).append((name, transposed))

    def _wrote(self, name: str, module: nn.Module, _args: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(output, Tensor) and isinstance(weight, nn.Parameter) and weight.dim() == 1:
            self._alive.append(output)
            self.writers[identity(output)] = name

    def _experts(self, name: str, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not args and not kwargs:
            raise ModelError(
                f"{type(self.modules[name]).__name__} is not told which experts a token goes to; experts that all run "
                "at once are not understood, and nothing is quantized by guess."
            )
        self._alive.append(hidden)
        self.experts[name] = identity(hidden)
        self.readers.setdefault(identity(hidden), [])
        return torch.empty_like(hidden)


class Structures:
    """The structure of every block of a skeleton; alike blocks are watched once."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._known: dict[tuple, list[InputGroup]] = {}
        self._calls: list[Call] | None = None

    def __getitem__(self, index: int) -> Structure:
        key = self._skeleton.signature(index)
        if key not in self._known:
            self._known[key] = self._discover(index)
        prefix = self._skeleton.block_name(index)
        groups = [_named(group, prefix, index) for group in self._known[key]]
        return Structure(tuple(groups))

    def __iter__(self) -> Iterator[Structure]:
        return (self[index] for index in range(len(self._skeleton.blocks)))

    def _meta_calls(self) -> list[Call]:
        if self._calls is None:
            # Masks cannot be made on meta; zeros of stride 0 stand in for the shell's weights and take no memory.
            model = copy.deepcopy(self._skeleton.model)
            for name in self._skeleton.shell_parameters():
                owner, _, tail = name.rpartition(".")
                shape = model.get_parameter(name).shape
                module = model.get_submodule(owner)
                module._parameters[tail] = nn.Parameter(torch.zeros(1).expand(shape), requires_grad=False)
            calls = record_calls(model, self._skeleton, torch.zeros(1, 4, dtype=torch.long))[1]
            self._calls = [(_to_meta(args), _to_meta(kwargs)) for args, kwargs in calls]
        return self._calls

    def _discover(self, index: int) -> list[InputGroup]:
        block = copy.deepcopy(self._skeleton.blocks[index]).to("meta")
        width = self._skeleton.config.get_text_config(decoder=True).hidden_size
        run = _Discovery(block)
        run.run(block, self._meta_calls()[index], torch.empty(1, 4, width, device="meta"))
        prefix = self._skeleton.block_name(index)
        names = checkpoint_names(self._skeleton.model, self._skeleton.block_parameters(index))
        tails = tails_of(self._skeleton.config.get_text_config(decoder=True).model_type)
        groups: list[InputGroup] = []
        for stage, (source, readers) in enumerate(run.readers.items()):
            norm = run.writers.get(source)
            label = f"input{stage}"
            views = [_plain_view(block, prefix, name, transposed, names) for name, transposed in readers]
            if views:
                groups.append(InputGroup("", tuple(views), 2 * stage, label, norm))
            for module in (m for m, seen in run.experts.items() if seen == source):
                groups += _expert_groups(block, prefix, module, names, 2 * stage, label, norm, tails)
        watched = {view.parameter for group in groups for view in group.linears}
        unseen = [f"{prefix}.{n}" for n, p in block.named_parameters() if p.dim() >= 2 and not n.endswith("bias")]
        unseen = [name for name in unseen if name not in watched]
        if not groups or unseen:
            raise ModelError(
                f"{type(block).__name__} has weight matrices that no watched product used ({unseen[:3] or 'all'}); "
                "this architecture is not understood, and nothing is quantized by guess."
            )
        relative = [_renamed(group, f"{prefix}.", "") for group in groups]
        return sorted(relative, key=lambda group: (group.stage, natural(group.linears[0].info.name)))


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {key: _to_meta(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_to_meta(item) for item in value)
    return value


def _plain_view(block: nn.Module, prefix: str, name: str, transposed: bool, names: dict) -> LinearView:
    parameter = f"{prefix}.{name}"
    stored = next(key for key, (source, _) in names.items() if source == parameter)
    shape = tuple(block.get_parameter(name).shape)
    owner, _, _ = name.rpartition(".")
    has_bias = getattr(block.get_submodule(owner), "bias", None) is not None
    tail = owner.rpartition(".")[2]
    kind = "router" if tail in ROUTER_TAILS else "conv1d" if transposed else "linear"
    info = LinearInfo(
        name=stored.removesuffix(".weight"),
        shape=(shape[1], shape[0]) if transposed else shape,  # type: ignore[arg-type]
        block=None,
        group="",
        fusion=_fusion(stored.removesuffix(".weight")),
        kind=kind,
        dtype=torch.float32,
    )
    return LinearView(info, parameter, f"{prefix}.{owner}.bias" if has_bias else None, transposed)


def _fusion(name: str) -> str | None:
    parent, _, tail = name.rpartition(".")
    for fused in FUSED_BY_ENGINES:
        if tail in fused:
            return f"{parent}.{'+'.join(sorted(fused))}"
    return None


def _expert_groups(
    block: nn.Module,
    prefix: str,
    module: str,
    names: dict,
    stage: int,
    source: str,
    norm: str | None,
    tails: Mapping[str, str],
) -> list[InputGroup]:
    found: dict[tuple[int, int], list[LinearView]] = {}
    for key, parameter in block.get_submodule(module).named_parameters(recurse=False):
        facts = FUSED_EXPERTS.get(key)
        if facts is None or parameter.dim() != 3:
            continue
        full = f"{prefix}.{module}.{key}"
        for stored, (owner, rows) in names.items():
            if owner == full:
                if rows.dim() > 2:
                    parts = parts_of(block.get_submodule(module), f"{prefix}.{module}", key, tails)
                    views = _whole(full, stored, parameter, f"{prefix}.{module}", parts)
                else:
                    views = _slices(full, stored, rows, parameter, f"{prefix}.{module}")
                for view in views:
                    found.setdefault((facts.stage, view.expert or 0), []).append(view)
    return [
        InputGroup("", tuple(views), stage + part, f"{source}.{part}", norm if part == 0 else None)
        for (part, _), views in sorted(found.items())
    ]


def _slices(full: str, stored: str, rows: Tensor, parameter: Tensor, fusion: str) -> Iterator[LinearView]:
    height, width = parameter.shape[1:]
    base = stored.removesuffix(".weight")
    piece = rows.reshape(-1)
    expert, start = divmod(int(piece[0]), height)
    info = LinearInfo(
        name=base,
        shape=(len(piece), width),
        block=None,
        group="",
        fusion=fusion,
        kind="expert",
        dtype=torch.float32,
    )
    yield LinearView(info, full, expert=expert, rows=(start, start + len(piece)))


def _whole(full: str, stored: str, parameter: Tensor, fusion: str, parts: Sequence[Part]) -> Iterator[LinearView]:
    """Of a parameter that the checkpoint stores as it is, with all experts in it."""
    for part in parts:
        shape = part.of(parameter).shape
        info = LinearInfo(
            name=part.name,
            shape=(shape[0], shape[1]),
            block=None,
            group="",
            fusion=fusion,
            kind="expert",
            dtype=torch.float32,
            whole=True,
        )
        yield LinearView(
            info,
            full,
            transposed=part.transposed,
            expert=part.expert,
            rows=part.rows,
            step=part.step,
            whole=stored,
        )


def _renamed(group: InputGroup, old: str, new: str) -> InputGroup:
    def swap(name: str) -> str:
        return new + name.removeprefix(old)

    views = tuple(
        replace(
            view,
            parameter=swap(view.parameter),
            bias=swap(view.bias) if view.bias else None,
            whole=swap(view.whole) if view.whole else None,
            info=replace(
                view.info,
                name=swap(view.info.name),
                fusion=swap(view.info.fusion) if view.info.fusion else None,
            ),
        )
        for view in group.linears
    )
    return replace(group, linears=views)


def _named(group: InputGroup, prefix: str, index: int) -> InputGroup:
    """The group of a signature as the group of block `index`."""
    placed = _renamed(group, "", f"{prefix}.")
    names = [view.info.name for view in placed.linears]
    parent = names[0].rpartition(".")[0]
    tails = [name.removeprefix(f"{parent}.") for name in names]
    title = f"{parent}.{'+'.join(tails)}"
    views = tuple(replace(view, info=replace(view.info, block=index, group=title)) for view in placed.linears)
    return replace(
        placed,
        name=title,
        linears=views,
        source=f"{prefix}.{group.source}",
        norm=f"{prefix}.{group.norm}" if group.norm else None,
    )
