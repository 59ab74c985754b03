"""SFW's step on the CPU in two passes over memory, in which neither v nor theta - v is ever stored.

The first pass advances the momentum buffers m and sums up ||m||^2 and ||theta - v||^2, the second
moves the weights theta. Where v is not 0 at the K entries of largest magnitude only, a sample first
gives a bracket, which very likely holds the K-th largest magnitude. The first pass then sums up all
entries outside the bracket, and among the few others, the candidates, the K-th is selected exactly.
A small tensor stays in a core's cache: it is taken whole, without a sample.

A pass goes over all tensors in one call of compiled code, in which PyTorch's own threads share the
work: threads of a second library would compete with them for the cores.
"""

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constraints import GradientVertex, Region
from constraints.tensors import is_local
from optim.base import TensorStep
from optim.cpu import kernels
from optim.foreach import move_to_vertices, rescaling

# Tensors of up to this many entries are taken whole; with fewer in all, threads cost more time
# than they save.
WHOLE, PARALLEL_FROM = 1 << 17, 1 << 16
# A sample takes one entry in SAMPLE_EVERY, but at least SAMPLE_LEAST and at most SAMPLE_MOST.
SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_EVERY = 1 << 11, 1 << 13, 1 << 5
# The bracket extends to either side by this many standard deviations of the K-th rank in a sample
# of independent entries. Neighbours are not independent: it fails more often than that suggests,
# and then the tensor is searched as a whole.
DEVIATIONS = 3.0

NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


class CpuStep:
    """Takes steps, and keeps scratch space for the next ones.

    Where more entries tie than v has room for, or sums are not accurate enough, the plain step
    moves theta.
    """

    def __init__(self) -> None:
        self.candidates = np.empty(0)

    def __call__(self, steps: Sequence[TensorStep]) -> None:
        """Take the steps; `obstacle` must be None for each of them."""
        for dtype in dict.fromkeys(s.theta.dtype for s in steps):
            self._take([s for s in steps if s.theta.dtype == dtype], NUMBERS[dtype])

    @staticmethod
    def obstacle(region: Region, tensors: Sequence[Tensor]) -> str | None:
        """Why the step cannot be taken with this region and these tensors; None if it can be."""
        if region.vertex is None:
            return f"there is none for {region!r}, whose vertex is unknown"
        if not _lie_alike(tensors):
            return (
                "parameter, gradient and momentum buffer are not plain tensors that lie in memory"
                " alike, contiguous or channels last"
            )
        return None

    def _take(self, steps: list[TensorStep], number: type[np.floating]) -> None:
        """Take the steps of tensors of one type, which lie in memory alike."""
        steps.sort(key=lambda s: s.region.n <= WHOLE)
        tensors = np.array([_row(s) for s in steps], kernels.TENSOR)
        ends = tensors["chunks"].cumsum()
        tensors["first"] = ends - tensors["chunks"]
        large, rows = int(np.count_nonzero(tensors["n"] > WHOLE)), int(ends[-1])
        chunks = rows - (len(steps) - large)
        if self.candidates.size < 2 * chunks * kernels.ROOM or self.candidates.dtype != number:
            self.candidates = np.empty(2 * chunks * kernels.ROOM, number)
        sums = np.empty((rows, 5))
        work, threads = kernels.phase(number), torch.get_num_threads()
        if tensors["n"].sum() < PARALLEL_FROM:
            threads = 1
        first, *others = (a.ctypes.data for a in (tensors, sums, self.candidates))
        call = np.array([0, 0, 0, first, rows, chunks, *others])  # kernels.CALL
        for phase, count in enumerate((large, rows, large, chunks)):
            call[:3] = 0, count, phase
            if threads > 1 and count > 1 and (parallel_for := _parallel()):
                parallel_for(work.address, call.ctypes.data, threads, 0)
            elif count:
                work.ctypes(call.ctypes.data)
        torch.autograd.graph.increment_version([s.theta for s in steps])
        for s, alpha in zip(steps, tensors["alpha"].tolist(), strict=True):
            s.alpha = alpha
            if math.isnan(alpha):
                move_to_vertices([s])


def _row(s: TensorStep) -> tuple[int | float, ...]:
    """The tensor's row of kernels.TENSOR."""
    n, vertex, group, gamma = s.region.n, s.region.vertex, s.group, rescaling(s)
    k = 0 if isinstance(vertex, GradientVertex) else vertex.entries
    chunks = -(-n // kernels.CHUNK) if n > WHOLE else 1
    sample = _sample(n, k) if n > WHOLE and 0 < k < n else (0, 0, 0)
    numbers = s.momentum, group["weight_decay"], s.region.radius, float(group["lr"])
    addresses = s.theta.data_ptr(), s.momentum_buffer.data_ptr(), s.gradient.data_ptr()
    gamma = math.nan if gamma is None else gamma
    return (*addresses, n, k, 0, chunks, *sample, *numbers, gamma, 0, 0, 0, 0, 0)


def _sample(n: int, k: int) -> tuple[int, int, int]:
    """The size of a sample, and how many of its entries exceed the ends of the bracket."""
    size = min(max(n // SAMPLE_EVERY, SAMPLE_LEAST), SAMPLE_MOST) // kernels.RUN * kernels.RUN
    rank = size * k / n
    margin = DEVIATIONS * math.sqrt(rank * (1 - k / n)) + 1
    return size, min(int(rank + margin), size), max(int(rank - margin), 0)


def _lie_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the entries of the tensors can be read from their addresses, in the same order."""
    contiguous = channels_last = True
    for t in tensors:
        if not is_local(t) or t.is_neg():
            return False
        contiguous = contiguous and t.is_contiguous()
        channels_last = channels_last and t.is_contiguous(memory_format=torch.channels_last)
    return contiguous or channels_last


@functools.cache
def _parallel() -> Any:
    """GOMP_parallel of the OpenMP library that PyTorch uses; None if it uses another one.

    Only its threads are warm: for some milliseconds after each operation, they wait in a loop.
    """
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function
