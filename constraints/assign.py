"""Which region each parameter tensor of a network gets, and how large it is."""

import copy
import inspect
import math
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn

from constraints.dtensor import entries, is_sharded, refuse_flattened, unsharded_class
from constraints.k_sparse import KSparsePolytope
from constraints.lp_ball import LpBall
from constraints.parts import applied, together
from constraints.region import Region, Unconstrained

# The seed is fixed, so that a network has the same regions in every run. A small tensor needs more
# draws than a large one: after 100 draws of ten entries the standard error of the mean norm is
# 1.5 %, after one draw of a million entries 0.1 %. A tensor is drawn until DRAWN_ENTRIES entries
# have been drawn, but at most MOST_DRAWS times.
DRAWN_ENTRIES, MOST_DRAWS, NORM_SEED = 100_000, 100, 22

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
    they accept mode None. Neither the model nor the global random state changes. The regions are
    the same before and after `fully_shard`, and on the meta device. Raises ValueError for an
    unknown kind or mode, for a size that is missing or not positive, and for parameters that FSDP1
    has flattened.
    """
    build = kind if callable(kind) else CONSTRAINTS.get(kind)
    if build is None:
        raise ValueError(f"kind must be one of {', '.join(CONSTRAINTS)}, not {kind!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(str, MODES))}, not {mode!r}")
    refuse_flattened(model.parameters())
    sizes = [p.numel() for p in model.parameters()]
    norms = [math.nan] * len(sizes)
    if mode == "initialization" and kind != "unconstraints":
        norms = _initial_norms(model)
    constraints = []
    for n, norm in zip(sizes, norms, strict=True):
        k = min(max(k_sparseness, math.floor(k_frac * n)), n)
        constraints.append(build(n, k, **MODES[mode](tau, norm)))
    return constraints


def make_feasible(model: nn.Module, constraints: list[Region]) -> None:
    """Shift each of `model.parameters()` into its region, in place; frozen ones stay."""
    with torch.no_grad():
        for p, region in zip(model.parameters(), constraints, strict=True):
            if not p.requires_grad:
                continue
            if is_sharded(p):
                (shifted,) = together([applied(region.shift_inside, p)], [p])
            else:
                shifted = region.shift_inside(p)
            entries(p).copy_(shifted)


def gauges(model: nn.Module, constraints: list[Region]) -> dict[str, float]:
    """How much of its region each of `model.named_parameters()` fills, by name.

    A gauge of 1 means on the surface, and 0 at the origin; see Region.gauge. The result is empty if
    a region has no gauge. Waits for the device.
    """
    if any(region.gauge is None for region in constraints):
        return {}
    with torch.no_grad():
        pairs = zip(model.named_parameters(), constraints, strict=True)
        return {name: _gauge(region, p) for (name, p), region in pairs}


def _gauge(region: Region, p: Tensor) -> float:
    if is_sharded(p) and not hasattr(region.gauge, "in_parts"):
        p = p.full_tensor()
    return region.gauge(p).item()


def _initial_norms(model: nn.Module) -> list[float]:
    """For each of `model.parameters()`, the mean L2 norm of what its layer's initialiser draws.

    It is estimated from at most 100 draws on a copy of the layer, by its `reset_parameters`, or
    `_reset_parameters` as in MultiheadAttention. For a parameter that the initialiser does not
    draw, and in a layer without one, it is the parameter's current norm. The norm is taken to be 1
    for a constant, such as BatchNorm's initial scale and shift, whatever its value.
    """
    norms: dict[nn.Parameter, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(NORM_SEED)  # leaves GPUs' generators alone
        for layer in model.modules():
            own = {name: p for name, p in layer.named_parameters(recurse=False) if p not in norms}
            if own:
                means = _layer_norms(layer)
                norms.update((p, means[name]) for name, p in own.items())
    return [norms[p] for p in model.parameters()]


def _layer_norms(layer: nn.Module) -> dict[str, float]:
    """The mean norm, as in `_initial_norms`, of each of the layer's own parameters."""
    initialise = _initialiser(layer)
    if initialise is None:
        return {name: _norm(name, p) for name, p in layer.named_parameters(recurse=False)}
    try:
        return _drawn_norms(layer, initialise, keep="meta")
    except RuntimeError:  # the initialiser may read a tensor that is no longer drawn
        return _drawn_norms(layer, initialise, keep="cpu")


def _drawn_norms(layer: nn.Module, initialise: str, keep: str) -> dict[str, float]:
    """`_layer_norms` of a layer with this initialiser.

    Tensors that have been drawn often enough are moved to the device `keep`. On "meta" it costs
    nothing to draw them again, and they keep their shape, on which others may depend.
    """
    replica, own = _replica(layer), dict(layer.named_parameters(recurse=False))
    pending = dict(replica.named_parameters(recurse=False))
    first: dict[str, Tensor] = {}
    norms: dict[str, list[float]] = {name: [] for name in pending}
    while pending:
        getattr(replica, initialise)()
        for name, p in list(pending.items()):
            if p.numel() and p.isnan().all():  # blank in the replica, and not drawn
                norms[name] = [_norm(name, own[name])]
                del pending[name]
                continue
            constant = torch.equal(p, first.setdefault(name, p.clone()))
            norms[name].append(p.norm().item())
            count = len(norms[name])
            # After two draws a constant initialiser can be distinguished from a random one.
            if count >= MOST_DRAWS or (count >= 2 and count * p.numel() >= DRAWN_ENTRIES):
                norms[name] = [_norm(name, p)] if constant else norms[name]
                setattr(replica, name, nn.Parameter(p.to(keep), requires_grad=False))
                del pending[name]
    return {name: fmean(values) for name, values in norms.items()}


def _initialiser(layer: nn.Module) -> str | None:
    """The name of the layer's method that draws its initial values; None if there is none."""
    for name in ("reset_parameters", "_reset_parameters"):
        method = getattr(layer, name, None)
        if callable(method):
            needed = [p for p in inspect.signature(method).parameters.values() if _is_needed(p)]
            return None if needed else name
    return None


def _is_needed(parameter: inspect.Parameter) -> bool:
    """Whether a call has to give this parameter of a method a value."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in optional


def _norm(name: str, p: Tensor) -> float:
    """The L2 norm of the parameter, but 1 where all entries are equal."""
    if p.is_meta:
        raise ValueError(
            f"no reset_parameters draws the parameter {name!r} of a layer, and on the meta device"
            " it has no values either: give it values first, or use mode 'radius' or 'diameter'"
        )
    flat = (p.detach().full_tensor() if is_sharded(p) else p.detach()).flatten()
    return 1.0 if torch.equal(flat, flat[:1].expand_as(flat)) else flat.norm().item()


def _replica(layer: nn.Module) -> nn.Module:
    """A copy of the layer on the CPU whose parameters are whole, for `reset_parameters`.

    What is sharded or on the meta device gets its shape, and NaN for its values.
    """
    tensors = [*layer.parameters(), *layer.buffers()]
    kind = unsharded_class(layer)
    if kind is type(layer) and not any(x.is_meta or is_sharded(x) for x in tensors):
        # A weight that a hook computes, as weight_norm does, cannot be copied by deepcopy.
        computed = [x for m in layer.modules() for x in vars(m).values() if isinstance(x, Tensor)]
        copies = {id(x): x.detach().clone() for x in computed}
        return copy.deepcopy(layer, copies).cpu().requires_grad_(False)

    def blank(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        fill = math.nan if x.is_floating_point() else 0
        values = torch.full(x.shape, fill, dtype=x.dtype, device="cpu")
        return nn.Parameter(values, requires_grad=False) if isinstance(x, nn.Parameter) else values

    replica = kind.__new__(kind)
    replica.__dict__ |= layer.__dict__ | {
        "_parameters": {name: blank(p) for name, p in layer._parameters.items()},
        "_buffers": {name: blank(buffer) for name, buffer in layer._buffers.items()},
        "_modules": {name: child and _replica(child) for name, child in layer._modules.items()},
    }
    return replica
