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
# often than that suggests; the K-th magnitude is then selected from all entries.
DEVIATIONS = 4.0
# Where v is a multiple of m, sums of float32 numbers give ||m||^2 at the chosen entries, and they
# give ||theta - v||^2 as a difference. They are trusted if the first is in this range, and if the
# second is not a smaller part of ||theta||^2 + ||v||^2 than LEAST_LEFT.
SMALLEST, LARGEST, LEAST_LEFT = 1e-25, 1e30, 1e-2


class Settled(NamedTuple):
    """What is known after the first pass: see `kernels.advance`."""

    square: float
    distance: float
    top: float
    product: float
    above: int
    count: int  # of candidates
    tie: np.floating | None = None  # if all candidates have one magnitude: it; they are not stored


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

    The scratch space is half as large as the largest tensor. A step whose bracket fails needs as
    much as one whole tensor instead.
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
        scalar, k = theta.dtype.type, s.region.vertex_entries
        along = s.region.vertex_norm == 2  # v is a multiple of m
        unit = scalar(0 if along else s.region.radius)  # v is -unit sign(m), or -unit m
        decay = s.group["weight_decay"]
        settled = self._first_pass(theta, m, g, k, unit, s.momentum, decay, along)
        if not math.isfinite(settled.square) and not np.isfinite(m).all():
            theta.fill(math.nan)
            return math.nan
        threshold, tied = self._select(m, k, settled, s.theta)
        distance = 0.0
        if along:
            unit, distance = self._multiple(settled, threshold, s.region.radius)
            if not unit or tied.size:
                move_to_vertices([s])
                return s.alpha
        elif gamma is None:
            distance = settled.distance + self._rest(theta, m, settled, threshold, unit)
            if tied.size:
                moved = theta[tied] + unit * np.sign(m[tied])
                distance += float(np.sum(moved**2 - theta[tied] ** 2))
        if gamma is None:
            gamma = _ratio(settled.square, distance)
        lr = float(s.group["lr"])
        # A product of 0 and infinity, at a vertex, is 0.
        alpha = min(lr * gamma, 1.0) if not (lr <= 0 or gamma == 0) else 0.0
        move = kernels.move_chunks if theta.size >= PARALLEL_FROM else kernels.move
        step = scalar(alpha) * scalar(unit)
        move(theta, m, threshold, scalar(1 - alpha), step, along)
        if tied.size:
            theta[tied] -= step * np.sign(m[tied])
        return alpha

    def _first_pass(
        self,
        theta: np.ndarray,
        m: np.ndarray,
        g: np.ndarray,
        k: int,
        radius: np.floating,
        momentum: float,
        decay: float,
        along: bool,
    ) -> Settled:
        n, scalar = theta.size, theta.dtype.type
        advance = kernels.advance_chunks if n >= PARALLEL_FROM else kernels.advance
        weights = scalar(momentum), scalar(1 - momentum), scalar(decay)
        tiny = np.nextafter(scalar(0), scalar(1))  # v is 0 where m is: nothing to choose there
        low, high, room = tiny, scalar(math.inf), n + 1
        if n >= SAMPLE_FROM:
            size = min(max(n // SAMPLE_EVERY, SAMPLE_LEAST), SAMPLE_MOST)
            magnitudes = np.empty(size // kernels.RUN * kernels.RUN, theta.dtype)
            kernels.sample(theta, m, g, *weights, magnitudes)
            low, high = np.maximum(_bracket(magnitudes, k / n), tiny)
            room = n // kernels.ROOM + 1
        self._make_room(room, theta.dtype)
        result = advance(theta, m, g, *weights, radius, low, high, along, self.scratch)
        above, found = result[-2:]
        complete = above < k and (above + found >= k or low == tiny)
        if complete and 0 <= found < room:  # the scratch space of a larger tensor has more room
            return Settled(*result)
        # The bracket does not hold the K-th magnitude, or holds too many: select from all entries.
        self.scratch = np.empty((2, 0))
        magnitudes = np.abs(m)
        magnitudes.partition(n - k)
        exact, magnitudes = np.maximum(magnitudes[n - k], tiny), None
        self._make_room(room, theta.dtype)
        same = scalar(1), scalar(0), scalar(0)
        sums = advance(theta, m, g, *same, radius, exact, exact, along, self.scratch)[:-1]
        ties = sum(np.count_nonzero(np.abs(piece) == exact) for _, piece in _pieces(m))
        return Settled(*sums, ties, exact)

    def _make_room(self, room: int, dtype: np.dtype) -> None:
        if self.scratch.shape[1] < room or self.scratch.dtype != dtype:
            self.scratch = np.empty((2, room), dtype)

    def _select(
        self, m: np.ndarray, k: int, settled: Settled, p: Tensor
    ) -> tuple[np.floating, np.ndarray]:
        """A threshold, and the indices of further entries: v is not 0 at these, nor from it on.

        There are further entries only if more entries tie at the K-th magnitude than v can have:
        they are the first of these in the tensor's order, whatever its memory format.
        """
        none, scalar = np.empty(0, np.int64), m.dtype.type
        wanted = k - settled.above
        threshold, surplus = settled.tie, settled.count - wanted
        if surplus < 0:  # fewer than K entries are not 0
            return np.nextafter(scalar(0), scalar(1)), none
        if threshold is None:
            magnitudes = np.abs(self.scratch[0, : settled.count])
            magnitudes.partition(surplus)
            threshold = magnitudes[surplus]
            wanted -= np.count_nonzero(magnitudes > threshold)
            surplus = np.count_nonzero(magnitudes[:surplus] == threshold)
        if surplus == 0:
            return threshold, none
        # No magnitude is at least NaN: as a threshold it excludes infinity, too.
        above = np.nextafter(threshold, scalar(math.inf)) if threshold < math.inf else math.nan
        return scalar(above), _first_tied(m, threshold, wanted, p)

    def _rest(
        self,
        theta: np.ndarray,
        m: np.ndarray,
        settled: Settled,
        threshold: np.floating,
        radius: np.floating,
    ) -> float:
        """||theta - v||^2 over the candidates; v is not 0 where |m| is at least the threshold."""
        if settled.tie is None:
            return kernels.candidates_distance(self.scratch, settled.count, threshold, radius)
        distance, step = 0.0, radius if settled.tie >= threshold else 0
        for start, piece in _pieces(m):
            tied = np.abs(piece) == settled.tie
            difference = theta[start : start + piece.size][tied] + step * np.sign(piece[tied])
            distance += float(np.sum(difference.astype(np.float64) ** 2))
        return distance

    def _multiple(
        self, settled: Settled, threshold: np.floating, radius: float
    ) -> tuple[float, float]:
        """c for which -c m, where |m| is at least the threshold, has norm r; and ||theta - v||^2.

        c is 0 if that cannot be told accurately from the sums.
        """
        if settled.tie is not None:
            return 0.0, 0.0
        m, theta = self.scratch[:, : settled.count].astype(np.float64)
        chosen = np.abs(m) >= threshold
        top = settled.top + float(np.sum(m[chosen] ** 2))
        if not SMALLEST < top < LARGEST:
            return 0.0, 0.0
        c = radius / math.sqrt(top)
        product = settled.product + float(np.sum(m[chosen] * theta[chosen]))
        squares = settled.distance + float(np.sum(theta**2)) + radius**2
        distance = squares + 2 * c * product
        return (c, distance) if distance > LEAST_LEFT * squares else (0.0, 0.0)


def _pieces(m: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The array in small pieces, each with its start, so that temporaries stay small."""
    for start in range(0, m.size, kernels.CHUNK):
        yield start, m[start : start + kernels.CHUNK]


def _first_tied(m: np.ndarray, threshold: np.floating, count: int, p: Tensor) -> np.ndarray:
    """Where in m the first `count` entries of magnitude `threshold` are, in the order of `p`."""
    found, total = [], 0
    for start, piece in _pieces(m):
        found.append(start + np.flatnonzero(np.abs(piece) == threshold))
        total += found[-1].size
        if p.is_contiguous() and total >= count:
            break
    tied = np.concatenate(found)
    if not p.is_contiguous():
        order = np.arange(p.numel()).reshape(p.shape).transpose(0, 2, 3, 1).reshape(-1)
        tied = tied[np.argsort(order[tied])]
    return tied[:count]


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
