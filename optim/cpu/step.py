"""SFW's step on the CPU in two passes over memory.

It is for regions whose vertex v is 0 but for the K entries of largest magnitude of the momentum
buffer m; there it is a multiple of sign(m), or of m itself. A sample of the entries gives a
bracket, which very likely holds the K-th largest magnitude. The first pass advances m, and sums up
all entries whose magnitude is outside the bracket. The few others are candidates, among which the
K-th largest magnitude is selected exactly. The second pass moves the weights theta. Neither v nor
theta - v is ever stored.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from constraints import Region
from constraints.dtensor import is_local
from optim.constrained import TensorStep
from optim.cpu import kernels
from optim.plain import move_to_vertices

# For smaller tensors a second thread, or a sample, costs more time than it saves.
PARALLEL_FROM, SAMPLE_FROM = 1 << 18, 1 << 13
# A sample takes one entry in SAMPLE_EVERY, but at least SAMPLE_LEAST and at most SAMPLE_MOST.
SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_EVERY = 1 << 11, 1 << 13, 1 << 5
# The bracket extends to either side by this many standard deviations of the K-th rank in a sample
# of independent entries. Neighbouring entries are not independent, so that the bracket fails more
# often than that suggests; the plain step then finds v.
DEVIATIONS = 4.0
# Where v is a multiple of m, sums of float32 numbers give ||m||^2 at the chosen entries, and they
# give ||theta - v||^2 as a difference. They are trusted if the first is more than SMALLEST, and the
# second more than LEAST_LEFT times ||theta||^2 + ||v||^2.
SMALLEST, LEAST_LEFT = 1e-25, 1e-2


class Settled(NamedTuple):
    """What is known after the first pass: see `kernels.advance`."""

    square: float
    distance: float
    top: float  # ||m||^2 above the bracket, and <theta, m> there
    product: float
    above: int
    count: int  # of candidates
    low: np.floating  # the smallest magnitude that a candidate may have


# Numba's threads cannot be used by two threads of Python at a time.
THREADS = threading.Lock()


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Within it, Numba uses as many threads as PyTorch."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


class CpuStep:
    """Takes the step of one tensor at a time, and keeps scratch space for the next one.

    The scratch space is half as large as the largest tensor. Where the bracket fails, or more
    entries tie than v has room for, the plain step moves theta; it needs room for three tensors.
    """

    def __init__(self) -> None:
        self.scratch = np.empty((2, 0))

    def __call__(self, s: TensorStep, gamma: float | None) -> bool:
        """Take the step; `gamma` None stands for ||m|| / ||theta - v||.

        Returns False, with nothing done, for what only the plain step takes: see `obstacle`.
        """
        arrays = None if s.region.vertex_entries is None else _flat_arrays(s.tensors)
        if arrays is None:
            return False
        threads = torch.get_num_threads()
        with THREADS, _threads_of_torch() if s.theta.numel() >= PARALLEL_FROM else nullcontext():
            s.alpha = self._step(s, *arrays, gamma)
        if torch.get_num_threads() != threads:  # Numba's threads set OpenMP's number as they start
            torch.set_num_threads(threads)
        torch.autograd.graph.increment_version(s.theta)
        return True

    @staticmethod
    def obstacle(region: Region, tensors: Sequence[Tensor]) -> str | None:
        """Why the step cannot be taken with this region and these tensors; None if it can be."""
        if region.vertex_entries is None:
            return f"there is none for {region!r}, which has no vertex_entries"
        if tensors and _flat_arrays(tensors) is None:
            return (
                "parameter, gradient and momentum buffer are not plain tensors that lie in memory"
                " alike, contiguous or channels last"
            )
        return None

    def _step(
        self, s: TensorStep, theta: np.ndarray, g: np.ndarray, m: np.ndarray, gamma: float | None
    ) -> float | Tensor:
        settled = self._first_pass(s, theta, g, m)
        vertex = None if settled is None else self._vertex(settled, s.region)
        if vertex is None:
            move_to_vertices([s])
            return s.alpha
        threshold, unit, distance = vertex
        if gamma is None:
            gamma = _ratio(settled.square, distance)
        lr, scalar = float(s.group["lr"]), theta.dtype.type
        # A product of 0 and infinity, at a vertex, is 0.
        alpha = min(lr * gamma, 1.0) if not (lr <= 0 or gamma == 0) else 0.0
        move = kernels.move_chunks if theta.size >= PARALLEL_FROM else kernels.move
        step = scalar(alpha) * scalar(unit)
        move(theta, m, threshold, scalar(1 - alpha), step, s.region.vertex_along_gradient)
        return alpha

    def _first_pass(
        self, s: TensorStep, theta: np.ndarray, g: np.ndarray, m: np.ndarray
    ) -> Settled | None:
        """Advance m; None if the bracket does not hold the K-th magnitude, or holds too many."""
        n, k, scalar = theta.size, s.region.vertex_entries, theta.dtype.type
        advance = kernels.advance_chunks if n >= PARALLEL_FROM else kernels.advance
        weights = scalar(s.momentum), scalar(1 - s.momentum), scalar(s.group["weight_decay"])
        low, high, room = _least(m), scalar(math.inf), n + 1
        if k == n:  # all that are not 0
            high, room = low, n // kernels.ROOM + 1
        elif n >= SAMPLE_FROM:
            size = min(max(n // SAMPLE_EVERY, SAMPLE_LEAST), SAMPLE_MOST)
            magnitudes = np.empty(size // kernels.RUN * kernels.RUN, theta.dtype)
            kernels.sample(theta, m, g, *weights, magnitudes)
            low, high = np.maximum(_bracket(magnitudes, k / n), low)
            room = n // kernels.ROOM + 1
        if self.scratch.shape[1] < room or self.scratch.dtype != theta.dtype:
            self.scratch = np.empty((2, room), theta.dtype)
        along = s.region.vertex_along_gradient
        radius = scalar(0 if along else s.region.radius)
        sums = advance(theta, m, g, *weights, radius, low, high, along, self.scratch)
        settled = Settled(*sums, low)
        complete = settled.above + settled.count >= k or low == _least(m)
        # The scratch space of a larger tensor has more room.
        fits = (settled.above < k or k == n) and complete and 0 <= settled.count < room
        return settled if fits and math.isfinite(settled.square) else None

    def _vertex(self, settled: Settled, region: Region) -> tuple[np.floating, float, float] | None:
        """A threshold, a unit, and ||theta - v||^2.

        v is -unit sign(m), or -unit m, where |m| is at least the threshold. None if more entries
        tie at the K-th magnitude than v has room for, or if the sums are not accurate enough.
        """
        m, theta = self.scratch[:, : settled.count]
        threshold, surplus = settled.low, settled.count - (region.vertex_entries - settled.above)
        if surplus > 0:
            magnitudes = np.abs(m)
            magnitudes.partition(surplus)
            threshold = magnitudes[surplus]
            if np.any(magnitudes[:surplus] == threshold):
                return None
        if not region.vertex_along_gradient:
            radius = m.dtype.type(region.radius)
            rest = kernels.candidates_distance(self.scratch, settled.count, threshold, radius)
            return threshold, region.radius, settled.distance + rest
        m, theta = m.astype(np.float64), theta.astype(np.float64)
        chosen = np.abs(m) >= threshold
        top = settled.top + float(np.sum(m[chosen] ** 2))
        if not SMALLEST < top < math.inf:
            return None
        unit = region.radius / math.sqrt(top)
        product = settled.product + float(np.sum(m[chosen] * theta[chosen]))
        squares = settled.distance + float(np.sum(theta**2)) + region.radius**2
        distance = squares + 2 * unit * product
        return (threshold, unit, distance) if distance > LEAST_LEFT * squares else None


def _least(m: np.ndarray) -> np.floating:
    """The smallest positive magnitude: where m is 0, v is 0, and there is nothing to choose."""
    return np.nextafter(m.dtype.type(0), m.dtype.type(1))


def _flat_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray] | None:
    """Views of the tensors' entries in the order of memory; None if they are not laid out alike."""
    if not all(map(is_local, tensors)):
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


def _ratio(square: float, distance: float) -> float:
    """||m|| / ||theta - v|| from the squares; 0 if m is 0, and else infinite at a vertex."""
    if square == 0:
        return 0.0
    return math.inf if distance <= 0 else math.sqrt(square / distance)
