"""Which region each parameter tensor of a network gets, and how large it is."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from constraints.initial_norms import initial_norms
from constraints.k_sparse import KSparsePolytope
from constraints.lp_ball import LpBall
from constraints.region import Region, Unconstrained
from constraints.sharding import assign, refuse_unknown, whole

# Builds a region from n, K and, by keyword, its radius or diameter.
RegionKind = Callable[..., Region]
# The regions, by the name that the command line gives them.
CONSTRAINTS: dict[str, RegionKind] = {
    "k_sparse_constraints": KSparsePolytope,
    "l2_constraints": lambda n, k, **size: LpBall(n, 2, **size),
    "unconstraints": lambda n, k, **size: Unconstrained(n),
}
# How `tau` sets a region's size, each from tau and the mean L2 norm of the tensor's initial values.
MODES: dict[str | None, Callable[[float, float], dict[str, float]]] = {
    "initialization": lambda tau, norm: {"diameter": 2 * tau * norm},
    "diameter": lambda tau, norm: {"diameter": tau},
    "radius": lambda tau, norm: {"radius": tau},
    None: lambda tau, norm: {},
}


def build_constraints(
    model: nn.Module,
    kind: str | RegionKind,
    k_sparseness: int = 10,
    k_frac: float = 0.05,
    tau: float = 15.0,
    mode: str | None = "initialization",
) -> list[Region]:
    """One region for each of `model.parameters()`, in their order (Miao et al., ICLR 2022).

    `kind` is a key of CONSTRAINTS, or a class of regions with the same arguments. A tensor of n
    entries has K = min(max(k_sparseness, floor(k_frac n)), n). `tau` is the L2 diameter (mode
    "diameter"), the radius ("radius") or half the diameter in units of the tensor's mean L2 norm at
    initialisation ("initialization"). Regions of kind "unconstraints" ignore all of these, and only
    they accept mode None. The regions are the same before and after `fully_shard`, on the meta
    device, and whatever the model's type. Raises ValueError for an unknown kind or mode, for a size
    that is missing or not positive, for a parameter whose initial norm is not known (see
    `initial_norms`), and for parameters that FSDP1 has flattened.
    """
    build = kind if callable(kind) else CONSTRAINTS.get(kind)
    if build is None:
        raise ValueError(f"kind must be one of {', '.join(CONSTRAINTS)}, not {kind!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(str, MODES))}, not {mode!r}")
    refuse_unknown(model.parameters())
    drawn = mode == "initialization" and kind != "unconstraints"
    sizes = [p.numel() for p in model.parameters()]
    norms = initial_norms(model) if drawn else [math.nan] * len(sizes)
    chosen = [min(max(k_sparseness, math.floor(k_frac * n)), n) for n in sizes]
    triples = zip(sizes, chosen, norms, strict=True)
    return [build(n, k, **MODES[mode](tau, norm)) for n, k, norm in triples]


@torch.no_grad()
def make_feasible(model: nn.Module, constraints: list[Region]) -> None:
    """Shift each of `model.parameters()` into its region, in place; frozen ones stay.

    Call it again when a parameter has been unfrozen, which may be outside its region. Raises
    ValueError for a parameter with values that are not finite.
    """
    for (name, p), region in zip(model.named_parameters(), constraints, strict=True):
        if not p.requires_grad:
            continue
        values = whole(p)
        has_values = type(values) is Tensor and not values.is_meta  # not a fake
        if has_values and not values.isfinite().all():
            raise ValueError(f"the parameter {name!r} has NaN or infinite values: give it others")
        assign(p, region.shift_inside(values))


def gauges(model: nn.Module, constraints: list[Region]) -> dict[str, float]:
    """How much of its region each of `model.named_parameters()` fills, by name.

    A gauge of 1 means on the surface, and 0 at the origin; see Region.gauge. The result is empty if
    a region has no gauge. Waits for the device.
    """
    if any(region.gauge is None for region in constraints):
        return {}
    pairs = zip(model.named_parameters(), constraints, strict=True)
    return {name: float(region.gauge(whole(p))) for (name, p), region in pairs}
