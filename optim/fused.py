"""SFW's step on the CPU in two passes over memory.

For regions whose vertices are sparse sign vectors. The first pass advances the momentum buffer m
and, with a bracket around its K-th largest magnitude that a sample gives, settles all entries but
the few inside it. Among those the K-th magnitude is selected exactly. The second pass moves the
weights theta. Neither v nor theta - v is ever stored.
"""

import math
import threading
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from constraints import Region
from optim import kernels

# Smaller tensors are not worth waking a second thread, or sampling.
PARALLEL_FROM, SAMPLE_FROM = 1 << 18, 1 << 13
# The least and most entries in a sample; between them, one in SAMPLE_EVERY.
SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_EVERY = 1 << 11, 1 << 13, 1 << 5
# The bracket reaches this many standard deviations of the K-th rank in a sample of independent
# entries to either side. Neighbours are alike, but a missed bracket costs only a full selection.
DEVIATIONS = 4.0


class Settled(NamedTuple):
    """What is known after the first pass: see `kernels.advance`."""

    square: float
    distance: float
    above: int
    candidates: np.ndarray  # their m and theta


class FusedStep(threading.local):
    """Takes the step of one tensor at a time, and keeps scratch space from one to the next.

    The scratch space, one for each thread of the host, is half of the largest tensor.
    """

    def __init__(self) -> None:
        self.scratch = np.empty((2, 0))

    def __call__(
        self, p: Tensor, m: Tensor, region: Region, lr: float, gamma: float | None,
        keep: float, decay: float,
    ) -> bool:  # fmt: skip
        """Advance m and move p by one step along p.grad, in place.

        `keep` is the momentum (0 at the first step), `decay` the weight decay, and `gamma` None
        stands for ||m|| / ||theta - v||. Returns False, with nothing done, for what only the plain
        step takes: another device, type or kind of region, or tensors laid out differently.
        """
        arrays = None if region.vertex_entries is None else _flat_arrays(p, p.grad, m)
        if arrays is None:
            return False
        theta, g, m_ = arrays
        parallel = theta.size >= PARALLEL_FROM
        if parallel:
            numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        scalar = theta.dtype.type
        radius = scalar(region.radius)
        settled = self._first_pass(theta, m_, g, region.vertex_entries, radius, keep, decay)
        threshold, tied = _select(m_, region.vertex_entries, settled, p)
        if gamma is None:
            distance = settled.distance + kernels.candidates_distance(
                settled.candidates, threshold, radius
            )
            if tied.size:
                moved = theta[tied] + radius * np.sign(m_[tied])
                distance += float(np.sum(moved**2 - theta[tied] ** 2))
            gamma = _ratio(settled.square, distance)
        alpha = min(lr * gamma, 1.0)
        move = kernels.move_chunks if parallel else kernels.move
        move(theta, m_, threshold, scalar(1 - alpha), scalar(alpha) * radius)
        if tied.size:
            theta[tied] -= scalar(alpha) * radius * np.sign(m_[tied])
        torch.autograd.graph.increment_version(p)
        return True

    def _first_pass(
        self, theta: np.ndarray, m: np.ndarray, g: np.ndarray, k: int, radius: np.floating,
        keep: float, decay: float,
    ) -> Settled:  # fmt: skip
        n, scalar = theta.size, theta.dtype.type
        advance = kernels.advance_chunks if n >= PARALLEL_FROM else kernels.advance
        weights = scalar(keep), scalar(1 - keep), scalar(decay)
        tiny = np.nextafter(scalar(0), scalar(1))  # v is 0 where m is: nothing to choose there
        low, high, room = tiny, scalar(math.inf), n + 1
        if n >= SAMPLE_FROM:
            size = min(max(n // SAMPLE_EVERY, SAMPLE_LEAST), SAMPLE_MOST)
            magnitudes = np.empty(size, theta.dtype)
            kernels.sample(theta, m, g, *weights, magnitudes)
            low, high = np.maximum(_bracket(magnitudes, k / n), tiny)
            room = n // kernels.ROOM + 1
        if self.scratch.shape[1] < room or self.scratch.dtype != theta.dtype:
            self.scratch = np.empty((2, room), theta.dtype)
        scratch = self.scratch[:, :room]
        result = advance(theta, m, g, *weights, radius, low, high, scratch)
        above, found = result[2:]
        if not (0 <= found < room and above < k and (above + found >= k or low == tiny)):
            # The bracket missed, or holds too much: select from all entries.
            magnitudes = np.abs(m)
            magnitudes.partition(n - k)
            exact, magnitudes = np.maximum(magnitudes[n - k], tiny), None
            scratch = np.empty((2, n), theta.dtype)
            same = scalar(1), scalar(0), scalar(0)
            result = advance(theta, m, g, *same, radius, exact, exact, scratch)
        square, distance, above, found = result
        return Settled(square, distance, above, scratch[:, :found])


def _flat_arrays(*tensors: Tensor) -> list[np.ndarray] | None:
    """Views of the tensors' entries in the order of memory; None if they are not laid out alike."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64):
        return None
    if any(t.dtype != dtype or not t.is_cpu or t.layout != torch.strided for t in tensors):
        return None
    arrays = [t.detach().numpy() for t in tensors]
    if not all(a.flags.c_contiguous for a in arrays):
        if arrays[0].ndim != 4:
            return None
        arrays = [a.transpose(0, 2, 3, 1) for a in arrays]
        if not all(a.flags.c_contiguous for a in arrays):
            return None
    return [a.reshape(-1) for a in arrays]


def _bracket(magnitudes: np.ndarray, share: float) -> tuple[np.floating, np.floating]:
    """Two sampled magnitudes, very likely around the one that `share` of all entries reach."""
    scalar, count = magnitudes.dtype.type, magnitudes.size
    rank = count * (1 - share)
    margin = DEVIATIONS * math.sqrt(rank * share) + 1
    below, above = int(rank - margin), int(rank + margin)
    low, high = scalar(0), scalar(math.inf)
    if above < count:
        magnitudes.partition(above)
        high = magnitudes[above]
        magnitudes = magnitudes[:above]
    if rank > margin:
        magnitudes.partition(below)
        low = magnitudes[below]
    return low, high


def _select(m: np.ndarray, k: int, settled: Settled, p: Tensor) -> tuple[np.floating, np.ndarray]:
    """The magnitude from which on v chooses entries, and entries below it that it also chooses.

    There are some of those only where more tie at the K-th magnitude than v has room for.
    """
    none, scalar = np.empty(0, np.int64), m.dtype.type
    magnitudes = np.abs(settled.candidates[0])
    position = magnitudes.size - (k - settled.above)
    if position < 0:  # there is room for all that is not 0
        return np.nextafter(scalar(0), scalar(1)), none
    magnitudes.partition(position)
    threshold = magnitudes[position]
    if position == 0 or magnitudes[:position].max() < threshold:
        return threshold, none
    tied = np.flatnonzero(np.abs(m) == threshold)
    if not p.is_contiguous():  # the first in the tensor's order, whatever its memory format
        order = np.arange(p.numel()).reshape(p.shape).transpose(0, 2, 3, 1).reshape(-1)
        tied = tied[np.argsort(order[tied])]
    room = k - settled.above - np.count_nonzero(magnitudes > threshold)
    return np.nextafter(threshold, scalar(math.inf)), tied[:room]


def _ratio(square: float, distance: float) -> float:
    """||m|| / ||theta - v|| from the squares: 0 for m = 0, and infinite at a vertex."""
    if not square > 0:
        return 0.0
    return math.sqrt(square / distance) if distance > 0 else math.inf
