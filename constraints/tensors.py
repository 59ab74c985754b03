"""What regions need of plain tensors: norms, and the largest entries."""

import math

import numpy as np
import torch
from torch import Tensor, nn

TINY = torch.finfo(torch.float64).tiny
# On a CPU, PyTorch's norms add up float32 numbers in a few lanes and lose digits: 1e-5 of a norm of
# a million entries, 0.3 % of 40 millions. Norms of blocks of this many entries are right to 1e-6.
BLOCK = 1 << 17


def is_local(x: Tensor) -> bool:
    """Whether reading the values of `x` costs nothing: it is in this CPU's memory, and no subclass
    of Tensor that stands for entries elsewhere."""
    return x.is_cpu and type(x) in (Tensor, nn.Parameter)


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """`x` times a number, rounded once: in half precision the number alone may not be finite."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * factor.to(dtype)).to(x.dtype)


def lp_norm(x: Tensor, p: float) -> Tensor:
    """The Lp norm of all entries of `x`, of which there may be none, as a float64 scalar tensor."""
    if not x.numel():
        return torch.zeros((), dtype=torch.float64, device=x.device)
    if not x.is_floating_point():  # of parameters that no optimizer moves
        x = x.abs().double()
    if not 2 < p < math.inf:
        return torch.linalg.vector_norm(x, p, dtype=torch.float64)
    # In units of the largest entry, whose powers could overflow, or all underflow.
    largest = lp_norm(x, math.inf).clamp(min=TINY)
    return largest * torch.linalg.vector_norm(x.double() / largest, p)


def row_norms(rows: Tensor, p: float) -> Tensor:
    """The Lp norm of each row, as a column of the type of `rows`."""
    if not rows.is_cpu or rows.shape[-1] <= BLOCK:
        return torch.linalg.vector_norm(rows, p, dim=-1, keepdim=True)
    blocks = [row_norms(block, p) for block in rows.split(BLOCK, -1)]
    return row_norms(torch.cat(blocks, -1).double(), p).to(rows.dtype)


def l2_norm(x: Tensor) -> Tensor:
    """The L2 norm of all entries of `x`, as a scalar tensor of its type."""
    if not x.is_cpu or x.numel() <= BLOCK:
        return torch.linalg.vector_norm(x)
    return row_norms(x.reshape(1, -1), 2).view(())


def furthest_in_ball(rows: Tensor, p: float) -> Tensor:
    """The point of the unit ball of the Lp norm, 1 < p < infinity, furthest along each row g.

    It is sign(g_i) |g_i|^(q-1) / ||g||_q^(q-1), 1/p + 1/q = 1; 0 where g is all 0. It has at least
    the precision of float32.
    """
    # Entries are divided by the largest magnitude, so that their powers neither overflow nor all
    # underflow. Norms of half-precision gradients need more digits than their entries have.
    dtype = torch.promote_types(rows.dtype, torch.float32)
    tiny = torch.finfo(dtype).tiny
    largest = rows.abs().amax(-1, keepdim=True).to(dtype)
    scaled = rows.to(dtype) / largest.clamp(min=tiny)
    q = p / (p - 1)
    scaled /= row_norms(scaled, q).clamp(min=tiny)
    return scaled if q == 2 else scaled.abs().pow_(q - 1).mul_(scaled.sign())


def largest_entries(magnitude: Tensor, k: int) -> Tensor:
    """1 at the `k` largest entries of each row of `magnitude`, and 0 elsewhere.

    Of entries that tie, the first are taken. It waits for no device.
    """
    if is_local(magnitude) and magnitude.dtype in (torch.float32, torch.float64):
        # NumPy's selection is many times faster on the CPU.
        position = magnitude.shape[-1] - k
        rows = np.partition(magnitude.detach().numpy(), position)
        threshold = torch.from_numpy(rows[..., position : position + 1])
        # As numbers of the same type, which multiply faster than booleans.
        chosen = torch.ge(magnitude, threshold, out=torch.empty_like(magnitude))
        if chosen.count_nonzero(-1).max() <= k:
            return chosen
    else:
        threshold = magnitude.topk(k, sorted=False).values.amin(-1, keepdim=True)
    above, tied = magnitude > threshold, magnitude == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))
