"""The norms that a network's parameters have when they are initialised."""

import copy
import inspect
import math
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


def initial_norms(model: nn.Module) -> list[float]:
    """For each of `model.parameters()`, the mean L2 norm of what its layer's initialiser draws.

    It is estimated from at most 100 draws in float32 on a copy of the layer, by its
    `reset_parameters`, or `_reset_parameters` as in MultiheadAttention. For a parameter that the
    initialiser does not draw, and in a layer that has none, or that cannot be copied or drawn, it
    is the parameter's present norm. The norm is taken to be 1 for a constant, such as BatchNorm's
    initial scale and shift, whatever its value. Raises ValueError, with the parameter's name, for
    one that has no values, or NaN or infinite ones.
    """
    norms: dict[nn.Parameter, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(NORM_SEED)  # leaves GPUs' generators alone
        for path, layer in model.named_modules():
            own = {name: p for name, p in layer.named_parameters(recurse=False) if p not in norms}
            drawn = _drawn(layer) if own else {}
            for name, p in own.items():
                norm = drawn.get(name)
                norms[p] = _present_norm(f"{path}.{name}".lstrip("."), p) if norm is None else norm
    return [norms[p] for p in model.parameters()]


def _drawn(layer: nn.Module) -> dict[str, float]:
    """The mean norm of each of the layer's own parameters that its initialiser draws."""
    initialise = _initialiser(layer)
    if initialise is None:
        return {}
    for keep in ("meta", "cpu"):  # the initialiser may read a tensor that is no longer drawn
        try:
            return _drawn_norms(layer, initialise, keep)
        except Exception:  # whatever a layer raises that cannot be copied, or drawn again
            continue
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
    norms: dict[str, list[float]] = {name: [] for name in pending}
    while pending:
        getattr(replica, initialise)()
        for name, p in list(pending.items()):
            if p.numel() and p.isnan().all():  # blank in the replica, and not drawn
                del pending[name], norms[name]
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


def _present_norm(name: str, p: Tensor) -> float:
    """The L2 norm of the parameter, but 1 where all entries are equal."""
    way_out = "or use mode 'radius' or 'diameter'"
    if p.is_meta:
        raise ValueError(
            f"no reset_parameters draws the parameter {name!r} of a layer, and on the meta device"
            f" it has no values either: give it values first, {way_out}"
        )
    flat = whole(p).flatten()
    norm = 1.0 if torch.equal(flat, flat[:1].expand_as(flat)) else lp_norm(flat, 2).item()
    if not math.isfinite(norm) or not flat[:1].isfinite().all():
        raise ValueError(
            f"the parameter {name!r} has NaN or infinite values, and the size of its region depends"
            f" on its norm: give it other values first, {way_out}"
        )
    return norm


def _replica(layer: nn.Module) -> nn.Module:
    """A copy of the layer on the CPU, in float32, whose parameters are whole.

    What is sharded or on the meta device gets its shape, and NaN for its values.
    """
    tensors = [*layer.parameters(), *layer.buffers()]
    kind = unsharded_class(layer)
    if kind is type(layer) and not any(x.is_meta or is_sharded(x) for x in tensors):
        # A weight that a hook computes, as weight_norm does, cannot be copied by deepcopy.
        computed = [x for m in layer.modules() for x in vars(m).values() if isinstance(x, Tensor)]
        copies = {id(x): x.detach().clone() for x in computed}
        return copy.deepcopy(layer, copies).cpu().float().requires_grad_(False)

    def blank(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if x.is_floating_point():
            values = torch.full(x.shape, math.nan, dtype=torch.float32, device="cpu")
        else:
            values = torch.zeros(x.shape, dtype=x.dtype, device="cpu")
        return nn.Parameter(values, requires_grad=False) if isinstance(x, nn.Parameter) else values

    replica = kind.__new__(kind)
    replica.__dict__ |= layer.__dict__ | {
        "_parameters": {name: blank(p) for name, p in layer._parameters.items()},
        "_buffers": {name: blank(buffer) for name, buffer in layer._buffers.items()},
        "_modules": {name: child and _replica(child) for name, child in layer._modules.items()},
    }
    return replica
