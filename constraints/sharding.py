"""Sharded parameters: DTensors, as FSDP2's `fully_shard` and tensor parallelism make them.

Every process gathers the whole tensor, does with it what a single process would do, and keeps its
own part of the result. All processes must call these functions together.
"""

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def is_sharded(x: Tensor) -> bool:
    """Whether `x` is a DTensor, of whose entries this process may have a part only."""
    if type(x) in (Tensor, nn.Parameter):
        return False
    module = sys.modules.get("torch.distributed.tensor")  # which made x, if it is one
    return module is not None and isinstance(x, module.DTensor)


def whole(x: Tensor) -> Tensor:
    """All entries of `x` as a plain tensor without gradient; it may share the memory of `x`."""
    return x.detach().full_tensor() if is_sharded(x) else x.detach()


@torch.no_grad()
def assign(x: Tensor, values: Tensor) -> None:
    """Set `x`, of which this process may have a part, to `values`: a plain tensor, the whole."""
    if not is_sharded(x):
        x.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    # Without a source rank nothing is sent: each process takes its part of what it has itself.
    part = distribute_tensor(values, x.device_mesh, x.placements, src_data_rank=None)
    x.to_local().copy_(part.to_local())


def refuse_unknown(params: Iterable[Tensor]) -> None:
    """Raise ValueError for FSDP1's pieces, and for DTensors whose entries are not summed yet."""
    for p in params:
        if getattr(p, "_fsdp_flattened", False):
            raise ValueError(
                "FSDP1 (FullyShardedDataParallel) has flattened the parameters: a region needs"
                " whole tensors. Use FSDP2 instead: torch.distributed.fsdp.fully_shard"
            )
        if is_sharded(p) and any(placement.is_partial() for placement in p.placements):
            raise ValueError("redistribute parameters without Partial placements first")


def unsharded_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module` before `fully_shard`, which puts one of its own in front of it."""
    fsdp, ancestry = sys.modules.get("torch.distributed.fsdp"), type(module).__mro__
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return type(module)
    return ancestry[ancestry.index(fsdp.FSDPModule) + 1]
