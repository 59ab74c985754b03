"""The norms that a network's parameters have when they are initialised."""

import contextlib
import copy
import math
from collections import defaultdict
from statistics import fmean

import torch
from torch import Tensor, nn

from constraints.sharding import is_sharded, unsharded_class, whole
from constraints.tensors import l2_norm, lp_norm

# The seed is fixed, so that a network has the same regions in every run. A small tensor needs more
# draws than a large one: after 100 draws of ten entries the standard error of the mean norm is
# 1.5 %, after one draw of a million entries 0.1 %. A tensor is drawn until DRAWN_ENTRIES entries
# have been drawn, but at most MOST_DRAWS times.
DRAWN_ENTRIES, MOST_DRAWS, NORM_SEED = 100_000, 100, 22
INITIALISERS = ("reset_parameters", "_reset_parameters")  # the latter in MultiheadAttention


def initial_norms(model: nn.Module) -> list[float]:
    """For each of `model.parameters()`, the mean L2 norm of what its layer's initialiser draws.

    It is estimated from at most 100 draws in float32 on a copy of the layer. For a parameter that
    no initialiser draws, or in a layer that cannot be copied, it is the parameter's present norm.
    It is 1 for a constant, such as BatchNorm's initial scale and shift, whatever its value, and for
    a frozen parameter with NaN or infinite values, such as a mask. Raises ValueError, with the
    parameter's name, for another one that has such values, or none.
    """
    norms: dict[nn.Parameter, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(NORM_SEED)  # leaves GPUs' generators alone
        for path, layer in model.named_modules():
            named = layer.named_parameters(path, recurse=False)
            own = [(name, p) for name, p in named if p not in norms]
            drawn = _drawn(layer) if own else {}
            for name, p in own:
                norm = drawn.get(name.rpartition(".")[2])
                norms[p] = _present_norm(name, p, not p.requires_grad) if norm is None else norm
    return [norms[p] for p in model.parameters()]


def _drawn(layer: nn.Module) -> dict[str, float]:
    """The mean norm of each of the layer's own parameters that its initialiser draws."""
    initialise = next((name for name in INITIALISERS if hasattr(layer, name)), None)
    for keep in ("meta", "cpu") if initialise else ():
        # A layer may raise anything when it is copied or drawn again. On "meta" it also fails if
        # the initialiser reads a tensor that is no longer drawn.
        with contextlib.suppress(Exception):
            return _drawn_norms(layer, initialise, keep)
    return {}


def _drawn_norms(layer: nn.Module, initialise: str, keep: str) -> dict[str, float]:
    """`_drawn` of a layer with this initialiser.

    Tensors that have been drawn often enough are moved to the device `keep`. On "meta" it costs
    nothing to draw them again, and they keep their shape, on which others may depend.
    """
    replica = _replica(layer)
    own = replica.named_parameters(recurse=False)
    pending = {name: p for name, p in own if p.is_floating_point()}
    first: dict[str, Tensor] = {}
    norms: dict[str, list[float]] = defaultdict(list)
    while pending:
        getattr(replica, initialise)()
        for name, p in list(pending.items()):
            if p.numel() and p.isnan().all():  # blank in the replica, and not drawn
                del pending[name]
                continue
            constant = torch.equal(p, first.setdefault(name, p.clone()))
            norms[name].append(l2_norm(p).item())
            count = len(norms[name])
            # After two draws a constant initialiser can be distinguished from a random one.
            if count >= MOST_DRAWS or (count >= 2 and count * p.numel() >= DRAWN_ENTRIES):
                norms[name] = [_present_norm(name, p)] if constant else norms[name]
                setattr(replica, name, nn.Parameter(p.to(keep), requires_grad=False))
                del pending[name]
    return {name: fmean(values) for name, values in norms.items()}


def _present_norm(name: str, p: Tensor, frozen: bool = False) -> float:
    """The L2 norm of the parameter, but 1 where all entries are equal, or frozen and not finite."""
    flat = p if p.is_meta else whole(p).flatten()
    if not p.is_meta and flat.isfinite().all():
        return 1.0 if torch.equal(flat, flat[:1].expand_as(flat)) else lp_norm(flat, 2).item()
    if frozen and not p.is_meta:
        return 1.0
    problem = "no values, and no reset_parameters" if p.is_meta else "NaN or infinite values"
    raise ValueError(
        f"the parameter {name!r} has {problem}, on whose norm its region depends: give it"
        " other values first, or use mode 'radius' or 'diameter'"
    )


def _replica(layer: nn.Module) -> nn.Module:
    """A copy of the layer on the CPU, in float32, without hooks, whose parameters are whole."""
    kind = unsharded_class(layer)
    replica = kind.__new__(kind)
    nn.Module.__init__(replica)
    keys = (vars(layer).keys() - vars(replica).keys()) | {"training", "_parameters", "_buffers"}
    # fully_shard keeps its state, which cannot be copied, under keys of its own.
    state = {key: vars(layer)[key] for key in keys if not key.startswith("__composable_api")}
    # Some tensors are computed by hooks, as by weight_norm. These cannot be copied by deepcopy.
    tensors = [*state["_parameters"].values(), *state["_buffers"].values(), *state.values()]
    copies = {id(x): _copy(x) for x in tensors if isinstance(x, Tensor)} | {id(layer): replica}
    replica.__dict__ |= copy.deepcopy(state, copies)
    replica._modules = {name: child and _replica(child) for name, child in layer._modules.items()}
    return replica


def _copy(x: Tensor) -> Tensor:
    """`x` on the CPU, and in float32 if it has real numbers; NaN where they are not here."""
    blank, dtype = (math.nan, torch.float32) if x.is_floating_point() else (0, x.dtype)
    if x.is_meta or is_sharded(x):
        values = torch.full(x.shape, blank, dtype=dtype, device="cpu")
    else:
        values = x.detach().to("cpu", dtype, copy=True)
    return nn.Parameter(values, requires_grad=False) if isinstance(x, nn.Parameter) else values
