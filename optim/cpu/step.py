"""SFW's step on the CPU in two passes over memory, in which neither v nor theta - v is ever stored.

The first pass advances the momentum buffer m and sums up ||m||^2 and ||theta - v||^2, the second
moves the weights theta. Where v is not 0 at the K entries of largest magnitude only, a sample first
gives a bracket, which very likely holds the K-th largest magnitude. The first pass then sums up all
entries outside the bracket, and among the few others, the candidates, the K-th is selected exactly.
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

from constraints import GradientVertex, Region
from constraints.tensors import is_local
from optim.cpu import kernels
from optim.foreach import move_to_vertices, rescaling
from optim.tensor_step import TensorStep

# For smaller tensors a second thread, or a sample, costs more time than it saves.
PARALLEL_FROM, SAMPLE_FROM = 1 << 18, 1 << 13
# A sample takes one entry in SAMPLE_EVERY, but at least SAMPLE_LEAST and at most SAMPLE_MOST.
SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_EVERY = 1 << 11, 1 << 13, 1 << 5
# The bracket extends to either side by this many standard deviations of the K-th rank in a sample
# of independent entries. Neighbours are not independent: it fails more often than that suggests.
DEVIATIONS = 4.0
# Where v is a multiple of m, ||theta - v||^2 is a difference of sums of float32 numbers. They are
# trusted if ||m||^2 is more than SMALLEST, and the difference more than LEAST_LEFT times
# ||theta||^2 + ||v||^2.
SMALLEST, LEAST_LEFT = 1e-25, 1e-2


class Inputs(NamedTuple):
    """What the kernels that advance m take: flat arrays, and numbers of their type."""

    theta: np.ndarray
    m: np.ndarray
    g: np.ndarray
    momentum: np.floating
    gain: np.floating  # 1 - momentum
    decay: np.floating


class Bracket(NamedTuple):
    """Magnitudes of candidates for the K-th largest one, and how many candidates there is room for.

    Zeros are never candidates: v is 0 there. With `low` 0 all other magnitudes up to `high` are.
    """

    low: np.floating
    high: np.floating
    room: int

    def holds(self, k: int, above: int, candidates: int) -> bool:
        """Whether the K-th largest magnitude is a candidate, or fewer than K are not 0."""
        complete = above + candidates >= k or self.low == 0
        return above < k and complete and 0 <= candidates < self.room


class Vertex(NamedTuple):
    """v is -unit sign(m), or -unit m, where |m| is at least the threshold; and what gamma needs."""

    threshold: np.floating
    unit: float
    square: float  # ||m||^2
    distance: float  # ||theta - v||^2


# Numba's threads cannot be used by two threads of Python at a time.
THREADS = threading.Lock()


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Within it, Numba uses as many threads as PyTorch."""
    threads = torch.get_num_threads()
    before = numba.get_num_threads()  # starts Numba's threads, which set the number of OpenMP's
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


class CpuStep:
    """Takes the step of one tensor at a time, and keeps scratch space for the next one.

    Where the bracket fails, or more entries tie than v has room for, or sums are not accurate
    enough, the plain step moves theta.
    """

    def __init__(self) -> None:
        self.scratch = np.empty((2, 0))

    def __call__(self, s: TensorStep) -> bool:
        """Take the step; False, with nothing done, for what only the plain step takes."""
        arrays = None if s.region.vertex is None else _flat_arrays(s.tensors)
        if arrays is None:
            return False
        with THREADS, _threads_of_torch() if s.theta.numel() >= PARALLEL_FROM else nullcontext():
            s.alpha = self._step(s, *arrays)
        torch.autograd.graph.increment_version(s.theta)
        return True

    @staticmethod
    def obstacle(region: Region, tensors: Sequence[Tensor]) -> str | None:
        """Why the step cannot be taken with this region and these tensors; None if it can be."""
        if region.vertex is None:
            return f"there is none for {region!r}, whose vertex is unknown"
        if tensors and _flat_arrays(tensors) is None:
            return (
                "parameter, gradient and momentum buffer are not plain tensors that lie in memory"
                " alike, contiguous or channels last"
            )
        return None

    def _step(
        self, s: TensorStep, theta: np.ndarray, g: np.ndarray, m: np.ndarray
    ) -> float | Tensor:
        scalar, along = theta.dtype.type, isinstance(s.region.vertex, GradientVertex)
        weights = scalar(s.momentum), scalar(1 - s.momentum), scalar(s.group["weight_decay"])
        inputs = Inputs(theta, m, g, *weights)
        if along:
            vertex = _along_momentum(s.region, inputs)
        elif s.region.vertex.entries == theta.size:
            vertex = self._signs_of_all(s.region, inputs)
        else:
            vertex = self._signs_of_largest(s.region, inputs)
        if vertex is None:
            move_to_vertices([s])
            return s.alpha
        gamma, lr = rescaling(s), float(s.group["lr"])
        if gamma is None:
            gamma = _ratio(vertex.square, vertex.distance)
        # A product of 0 and infinity, at a vertex, is 0.
        alpha = min(lr * gamma, 1.0) if not (lr <= 0 or gamma == 0) else 0.0
        move = kernels.move_chunks if theta.size >= PARALLEL_FROM else kernels.move
        step = scalar(alpha) * scalar(vertex.unit)
        kernels.run(move, theta, m, vertex.threshold, scalar(1 - alpha), step, along)
        return alpha

    def _signs_of_all(self, region: Region, inputs: Inputs) -> Vertex | None:
        """Advance m; v is -radius sign(m). None if an entry of m is not finite."""
        scalar = inputs.theta.dtype.type
        none = Bracket(scalar(math.inf), scalar(0), 1)  # every magnitude but 0 is above it
        square, distance, _, _ = self._advance(region, inputs, none)
        known = math.isfinite(square)
        return Vertex(scalar(0), region.radius, square, distance) if known else None

    def _signs_of_largest(self, region: Region, inputs: Inputs) -> Vertex | None:
        """Advance m; None if the K-th magnitude is not bracketed, or too many entries tie at it."""
        k, radius = region.vertex.entries, inputs.theta.dtype.type(region.radius)
        bracket = _bracket(inputs, k)
        square, distance, above, count = self._advance(region, inputs, bracket)
        if not bracket.holds(k, above, count) or not math.isfinite(square):
            return None
        threshold, surplus = bracket.low, count - (k - above)
        if surplus > 0:
            magnitudes = np.abs(self.scratch[0, :count])
            magnitudes.partition(surplus)
            threshold = magnitudes[surplus]
            if np.any(magnitudes[:surplus] == threshold):
                return None
        distance += kernels.run(kernels.candidates_distance, self.scratch, count, threshold, radius)
        return Vertex(threshold, region.radius, square, distance)

    def _advance(
        self, region: Region, inputs: Inputs, bracket: Bracket
    ) -> tuple[float, float, int, int]:
        """`kernels.advance`, with the candidates in the scratch space."""
        theta = inputs.theta
        if self.scratch.shape[1] < bracket.room or self.scratch.dtype != theta.dtype:
            self.scratch = np.empty((2, bracket.room), theta.dtype)
        advance = kernels.advance_chunks if theta.size >= PARALLEL_FROM else kernels.advance
        radius, (low, high, _) = theta.dtype.type(region.radius), bracket
        return kernels.run(advance, *inputs, radius, low, high, self.scratch)


def _along_momentum(region: Region, inputs: Inputs) -> Vertex | None:
    """Advance m; v is -radius m / ||m||. None if the sums are not accurate enough."""
    chunks = inputs.theta.size >= PARALLEL_FROM
    advance = kernels.advance_products_chunks if chunks else kernels.advance_products
    square, theta_square, product = kernels.run(advance, *inputs)
    if not SMALLEST < square < math.inf:
        return None
    unit, squares = region.radius / math.sqrt(square), theta_square + region.radius**2
    distance = squares + 2 * unit * product
    accurate = distance > LEAST_LEFT * squares
    return Vertex(inputs.theta.dtype.type(0), unit, square, distance) if accurate else None


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


def _bracket(inputs: Inputs, k: int) -> Bracket:
    """Around the K-th largest magnitude that m will have, by a sample; of small tensors, all."""
    n, scalar = inputs.theta.size, inputs.theta.dtype.type
    low, high = scalar(0), scalar(math.inf)
    if n < SAMPLE_FROM:
        return Bracket(low, high, n + 1)
    size = min(max(n // SAMPLE_EVERY, SAMPLE_LEAST), SAMPLE_MOST) // kernels.RUN * kernels.RUN
    magnitudes = np.empty(size, inputs.theta.dtype)
    kernels.run(kernels.sample, *inputs, magnitudes)
    rank = size * (1 - k / n)
    margin = DEVIATIONS * math.sqrt(rank * k / n) + 1
    below, above = int(rank - margin), int(rank + margin)
    if above < size:
        magnitudes.partition(above)
        high = magnitudes[above]
        magnitudes = magnitudes[:above]
    if rank > margin:
        magnitudes.partition(below)
        low = magnitudes[below]
    return Bracket(low, high, n // kernels.ROOM + 1)


def _ratio(square: float, distance: float) -> float:
    """||m|| / ||theta - v|| from the squares; 0 if m is 0, and else infinite at a vertex."""
    if square == 0:
        return 0.0
    return math.inf if distance <= 0 else math.sqrt(square / distance)
