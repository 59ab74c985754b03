"""Exact Euclidean projections that more than one region needs."""

import math

import torch
from torch import Tensor


def project_capped_l1_ball(x: Tensor, total: float, cap: float = math.inf) -> Tensor:
    """The point nearest to `x` with ||y||_1 <= total and ||y||_inf <= cap; shaped like `x`.

    By the optimality conditions y_i = sign(x_i) clip(|x_i| - shift, 0, cap) with the smallest
    shift >= 0 at which ||y||_1 <= total. That norm falls linearly in `shift` between breakpoints:
    an entry starts to shrink where |x_i| - shift drops below the cap, and ends at |x_i|. (For
    cap = infinity this is Duchi et al., ICML 2008.)
    """
    magnitude = x.detach().abs().double().flatten()
    starts = (magnitude - cap).clamp_(min=0)
    breakpoints, order = torch.cat([starts, magnitude]).sort()
    slopes = torch.where(order < magnitude.numel(), 1.0, -1.0).to(magnitude.dtype).cumsum_(0)
    fallen = (slopes[:-1] * breakpoints.diff()).cumsum_(0)
    excess = magnitude.clamp(max=cap).sum() - total
    # `gather`, since indexing by a tensor without dimensions waits for the device.
    last = torch.searchsorted(fallen, excess.clamp(min=0).view(1)).clamp_(max=fallen.numel() - 1)
    # Step back from the end of the piece in which the norm reaches `total`.
    back = (fallen.gather(0, last) - excess) / slopes.gather(0, last).clamp_(min=1)
    shift = torch.where(excess > 0, breakpoints.gather(0, last + 1) - back, 0.0)
    clipped = (x.abs().double() - shift).clamp_(min=0, max=cap)
    return clipped.to(x.dtype).copysign_(x)
