"""Sharded tensors: DTensors, as FSDP2's `fully_shard` and tensor parallelism make parameters.

Here is what their regions need of them: the entries that this process has, and where these lie in
the whole tensor. torch.distributed is imported where there is such a tensor, and only there.
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


def is_local(x: Tensor) -> bool:
    """Whether reading the values of `x` costs nothing: it is in this CPU's memory, and no subclass
    of Tensor that stands for entries elsewhere, as a DTensor's are."""
    return x.is_cpu and type(x) in (Tensor, nn.Parameter)


def entries(x: Tensor) -> Tensor:
    """The entries of `x` that this process has, in the memory of `x`, as a plain tensor."""
    return x.to_local().detach() if is_sharded(x) else x


def like(local: Tensor, x: Tensor) -> Tensor:
    """The DTensor that is sharded as `x`, and of which `local` is this process's part."""
    from torch.distributed.tensor import DTensor

    mesh, placements = x.device_mesh, x.placements
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def redistributed(x: Tensor, p: Tensor) -> Tensor:
    """The DTensor `x`, such as a gradient that is yet to be summed, sharded as the DTensor `p`."""
    if not is_sharded(x) or x.device_mesh != p.device_mesh:
        raise RuntimeError("the gradient of a sharded parameter must be sharded over its processes")
    return x if x.placements == p.placements else x.redistribute(placements=p.placements)


def part_of(whole: Tensor, x: Tensor) -> Tensor:
    """Of `whole`, a plain tensor that all processes have, the entries that this one has of `x`."""
    return _part(whole, x.device_mesh, x.placements)


def sharding_dims(x: Tensor) -> tuple[int, ...]:
    """The mesh dimensions along which processes have different entries of the DTensor `x`.

    Raises ValueError for Partial placements: there the entries are sums that are not known yet.
    """
    if any(placement.is_partial() for placement in x.placements):
        raise ValueError(
            f"a tensor with placements {x.placements} is not known yet: redistribute it without"
            " Partial placements first"
        )
    sizes, places = x.device_mesh.shape, enumerate(x.placements)
    return tuple(dim for dim, place in places if not place.is_replicate() and sizes[dim] > 1)


def positions(x: Tensor, local: Tensor) -> Tensor:
    """Where in the whole `x`, in its own order, the entries are whose places are `local`.

    `local` has places in this process's entries, flattened. For a plain tensor they are the same.
    """
    if not is_sharded(x):
        return local
    found, own = torch.zeros_like(local), entries(x).shape
    stride = local_stride = 1
    for dim in reversed(range(x.dim())):
        along = _part(
            torch.arange(x.shape[dim], device=local.device),
            x.device_mesh,
            [_of_a_vector(placement, dim, x.dim()) for placement in x.placements],
        )
        found += along[local // local_stride % max(own[dim], 1)] * stride
        stride, local_stride = stride * x.shape[dim], local_stride * own[dim]
    return found


def _part(whole: Tensor, mesh, placements) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    # Without a source rank nothing is sent: each process takes its part of what it has itself.
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()


def _of_a_vector(placement, dim: int, dims: int):
    """How the indices along dimension `dim` of `dims` are spread over the processes."""
    from torch.distributed.tensor import Replicate

    if placement.is_replicate() or placement.dim % dims != dim:
        return Replicate()
    factor = getattr(placement, "split_factor", None)
    return type(placement)(0) if factor is None else type(placement)(0, split_factor=factor)


def refuse_flattened(params: Iterable[Tensor]) -> None:
    """Raise ValueError for parameters of FSDP1, which are pieces of one flat vector."""
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        raise ValueError(
            "FSDP1 (FullyShardedDataParallel) has flattened the parameters: a region needs whole"
            " tensors. Use FSDP2 instead: torch.distributed.fsdp.fully_shard"
        )


def unsharded_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module` before `fully_shard`, which puts one of its own in front of it."""
    fsdp, ancestry = sys.modules.get("torch.distributed.fsdp"), type(module).__mro__
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return type(module)
    return ancestry[ancestry.index(fsdp.FSDPModule) + 1]
