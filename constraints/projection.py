"""Exact Euclidean projections that more than one region needs."""

import math

import torch
from torch import Tensor

from constraints.tensors import is_local, lp_norm

# The number of entries that the CPU works on at a time: temporaries of this size stay in its
# caches, and PyTorch computes them on one thread.
PIECE = 1 << 15
# Newton's method takes about ten steps, and bisection at most MOST_STEPS. They end when the norm is
# right to the relative error TOLERANCE, which is that of its sum's rounding.
MOST_STEPS, TOLERANCE = 200, 1e-13


def project_capped_l1_ball(x: Tensor, total: float, cap: float = math.inf) -> Tensor:
    """The point nearest to `x` with ||y||_1 <= total and ||y||_inf <= cap; shaped like `x`.

    By the optimality conditions y_i = sign(x_i) clip(|x_i| - shift, 0, cap) with the smallest
    shift >= 0 at which ||y||_1 <= total. That norm is a decreasing, piecewise linear function of
    the shift. (For cap = infinity this is Duchi et al., ICML 2008.) On the CPU the shift is found
    in a few passes over `x`, on a GPU, where their number would wait for the device, by sorting.
    """
    if not x.numel():
        return x.clone()
    flat, local = x.detach().reshape(-1), is_local(x)
    pieces = flat.split(PIECE) if local else (flat,)
    shift = shift_by_newton(pieces, total, cap) if local else shift_by_sorting(flat, total, cap)
    shrunk = ((piece.abs().double() - shift).clamp_(0, cap).copysign_(piece) for piece in pieces)
    projected = torch.cat([piece.to(x.dtype) for piece in shrunk]).view(x.shape)
    return projected if x.is_contiguous() else torch.empty_like(x).copy_(projected)


def shift_by_newton(pieces: tuple[Tensor, ...], total: float, cap: float) -> float:
    """The shift, by Newton's method; NaN if an entry is NaN.

    The method is exact once it is on the linear piece of the norm that holds the root. A step that
    leaves the bracket of the root is replaced by a bisection. Entries that are 0, or at the cap,
    for every shift in the bracket are left out of further steps.
    """
    shift, low, high = 0.0, 0.0, max(lp_norm(piece, math.inf).item() for piece in pieces)
    settled = 0.0  # the sum of the entries left out, which are at the cap
    for _ in range(MOST_STEPS):
        norm, free = settled, 0
        for piece in pieces:
            clipped = (piece.abs().double() - shift).clamp_(0, cap)
            norm += clipped.sum().item()
            free += ((clipped > 0) & (clipped < cap)).sum().item()
        if math.isnan(norm):
            return norm
        if abs(norm - total) <= TOLERANCE * total or (shift == 0 and norm <= total):
            break
        low, high = (shift, high) if norm > total else (low, shift)
        shift = shift + (norm - total) / free if free else low
        if not low < shift < high:
            shift = (low + high) / 2
        unsettled = []
        for piece in pieces:
            magnitude = piece.abs().double()  # bfloat16 would round `low` and `high`
            at_cap = magnitude >= high + cap
            unsettled.append(magnitude[(magnitude > low) & ~at_cap])
            settled += at_cap.sum().item() * cap if cap < math.inf else 0.0
        pieces = torch.cat(unsettled).split(PIECE)
    return shift


def shift_by_sorting(x: Tensor, total: float, cap: float) -> Tensor:
    """The shift for the flat `x`, from the sorted breakpoints of the norm; waits for no device.

    Entry i adds two breakpoints: the shift from which on it is below the cap, |x_i| - cap, and the
    shift from which on it is 0, |x_i|.
    """
    magnitude = x.abs().double()
    starts = (magnitude - cap).clamp_(min=0)
    breakpoints, order = torch.cat([starts, magnitude]).sort()
    slopes = torch.where(order < magnitude.numel(), 1.0, -1.0).to(magnitude.dtype).cumsum_(0)
    fallen = (slopes[:-1] * breakpoints.diff()).cumsum_(0)
    excess = magnitude.clamp(max=cap).sum() - total
    # Not by indexing: with a tensor without dimensions that would wait for the device.
    last = torch.searchsorted(fallen, excess.clamp(min=0).view(1)).clamp_(max=fallen.numel() - 1)
    # The norm reaches `total` within this linear piece, this far before its end.
    back = (fallen.gather(0, last) - excess) / slopes.gather(0, last).clamp_(min=1)
    return torch.where(excess <= 0, 0.0, breakpoints.gather(0, last + 1) - back)
