"""A model in shards: every process holds a part of each parameter, and a block is whole only while it is at work.

PyTorch's `fully_shard` (FSDP, Zhao et al. 2023, https://arxiv.org/abs/2304.11277).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_FLAG = "ACCELERATE_USE_FSDP"


def take_over() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process; accelerate is kept from sharding a second time."""
    asked = parse_flag_from_env(_FLAG)
    os.environ.pop(_FLAG, None)
    return asked


def shard(root: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Spreads the parameters of `root` over all processes, each block by itself, and moves them to `device`."""
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    for module in (*blocks, root):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    root._is_accelerate_prepared = True  # type: ignore[assignment]  # so that it is not wrapped for replicas


def whole(value: Tensor) -> Tensor:
    """All of a tensor; every process has to ask for it at the same time where it is in shards."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, whole in every process, in shards where `other` of its shape is."""
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
