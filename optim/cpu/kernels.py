"""Compiled loops of SFW's step on the CPU (see `optim.cpu.step`).

The functions take slices and loop over them from 0 to their size: if an index could be negative,
Numba would check each access, and the loop would not be vectorised. Scalars have the arrays' type.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange
from numba.core.caching import NullCache

# Entries that a thread works on at a time, and entries that are summed in the tensors' own
# precision before the sum is added to a float64 total.
CHUNK, BLOCK = 1 << 15, 1 << 10
# A chunk has room for one candidate in every ROOM entries.
ROOM = 4
# A sample consists of runs of RUN neighbours, which fill a cache line, and which start at multiples
# of the golden ratio, modulo 1 and times the size: these are spread evenly.
RUN, GOLDEN = 16, 0.6180339887498949

# Sums may be reordered into vector lanes; infinities and NaN keep their meaning.
OPTIONS = dict(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

KERNELS: list[Any] = []  # what Numba compiles at its first call


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """A kernel, whose compiled code is kept on the disk."""
    kernel = njit(**OPTIONS, **options)(function)
    KERNELS.append(kernel)
    try:
        kernel.enable_caching()
    except Exception as error:  # no folder can be written to
        compile_in_memory(error)
    return kernel


def compile_in_memory(error: Exception) -> None:
    """Neither load nor keep compiled code from now on; warn, once, with what went wrong."""
    warnings.warn(
        "SFW's step is compiled anew in this run, which takes some seconds: compiled code cannot be"
        f" loaded or kept ({type(error).__name__}: {error}). Remove the folder"
        " optim/cpu/__pycache__, or set NUMBA_CACHE_DIR to another folder, with space",
        stacklevel=1,  # so that Python shows it once
    )
    for kernel in KERNELS:
        kernel._cache = NullCache()


compiled_parallel = functools.partial(compiled, parallel=True)


def run(kernel: Any, *arguments: Any) -> Any:
    """Call a kernel; if its compiled code can be neither loaded nor kept, compile it in memory."""
    try:
        return kernel(*arguments)
    except Exception as error:  # while it was loaded, before it has changed anything
        if isinstance(KERNELS[0]._cache, NullCache):
            raise
        compile_in_memory(error)
        return kernel(*arguments)


@compiled
def sample(theta, m, g, momentum, gain, decay, magnitudes):
    """Fill `magnitudes` with magnitudes that m will have after `advance`, from all parts of m."""
    for r in range(magnitudes.size // RUN):
        a = int((r * GOLDEN) % 1.0 * (theta.size - RUN))
        theta_, m_, g_ = theta[a : a + RUN], m[a : a + RUN], g[a : a + RUN]
        run = magnitudes[r * RUN : (r + 1) * RUN]
        for i in range(run.size):
            run[i] = abs(momentum * m_[i] + gain * (g_[i] + decay * theta_[i]))


@compiled
def advance(theta, m, g, momentum, gain, decay, radius, low, high, candidates):
    """Advance m, sum it up, and copy m and theta of the candidates to the rows of `candidates`.

    m <- momentum m + gain (g + decay theta). Candidates have magnitudes low ... high; what has no
    room overwrites the last column. Returns ||m||^2; ||theta - v||^2 without the candidates, for
    v = -radius sign(m) above `high`; the numbers of entries above `high` and of candidates.
    """
    one, zero = theta.dtype.type(1), theta.dtype.type(0)
    words = np.empty(BLOCK // 8, np.uint64)  # eight flags each
    flags = words.view(np.uint8)
    hits = np.empty(BLOCK // 8, np.int64)
    square, distance, above, found = 0.0, 0.0, 0, 0
    for j in range(0, m.size, BLOCK):
        theta_, m_, g_ = theta[j : j + BLOCK], m[j : j + BLOCK], g[j : j + BLOCK]
        block_square, block_distance, block_above = zero, zero, zero
        for i in range(m_.size):
            weight = theta_[i]
            x = momentum * m_[i] + gain * (g_[i] + decay * weight)
            m_[i] = x
            block_square += x * x
            magnitude = abs(x)
            minus_v = radius if x > zero else -radius
            difference = weight + (minus_v if magnitude > high else zero)
            inside = (magnitude >= low) & (magnitude <= high) & (magnitude > zero)
            block_distance += zero if inside else difference * difference
            block_above += one if magnitude > high else zero
            flags[i] = np.uint8(1) if inside else np.uint8(0)
        square += block_square
        distance += block_distance
        above += int(block_above)
        count = 0
        for w in range((m_.size + 7) // 8):
            hits[count] = w  # without a branch: if it does not count, the next one overwrites it
            count += words[w] != 0
        for w in hits[:count]:
            for i in range(8 * w, min(8 * w + 8, m_.size)):
                place = min(found, candidates.shape[1] - 1)
                candidates[0, place], candidates[1, place] = m_[i], theta_[i]
                found += flags[i]
    return square, distance, above, found


@compiled_parallel
def advance_chunks(theta, m, g, momentum, gain, decay, radius, low, high, candidates):
    """`advance` with chunks on several threads; sums do not depend on the number of threads.

    Returns -1 as the number of candidates if a chunk had no room for its candidates.
    """
    chunks = (m.size + CHUNK - 1) // CHUNK
    sums, counts = np.empty((chunks, 2)), np.empty((chunks, 2), np.int64)
    for c in prange(chunks):
        a, b = c * CHUNK, min(m.size, (c + 1) * CHUNK)
        own = candidates[:, a // ROOM : (b + ROOM - 1) // ROOM]
        sums[c, 0], sums[c, 1], counts[c, 0], counts[c, 1] = advance(
            theta[a:b], m[a:b], g[a:b], momentum, gain, decay, radius, low, high, own
        )
    square, distance, above, found = 0.0, 0.0, 0, 0
    for c in range(chunks):
        square += sums[c, 0]
        distance += sums[c, 1]
        above += counts[c, 0]
        start = c * CHUNK // ROOM
        if counts[c, 1] >= (min(m.size - c * CHUNK, CHUNK) + ROOM - 1) // ROOM:
            return square, distance, above, -1
        for i in range(start, start + counts[c, 1]):
            candidates[0, found], candidates[1, found] = candidates[0, i], candidates[1, i]
            found += 1
    return square, distance, above, found


@compiled
def advance_products(theta, m, g, momentum, gain, decay):
    """Advance m as `advance` does; returns ||m||^2, ||theta||^2 and <theta, m>."""
    zero = theta.dtype.type(0)
    m_square, theta_square, product = 0.0, 0.0, 0.0
    for j in range(0, m.size, BLOCK):
        theta_, m_, g_ = theta[j : j + BLOCK], m[j : j + BLOCK], g[j : j + BLOCK]
        block_m, block_theta, block_product = zero, zero, zero
        for i in range(m_.size):
            weight = theta_[i]
            x = momentum * m_[i] + gain * (g_[i] + decay * weight)
            m_[i] = x
            block_m += x * x
            block_theta += weight * weight
            block_product += x * weight
        m_square += block_m
        theta_square += block_theta
        product += block_product
    return m_square, theta_square, product


@compiled_parallel
def advance_products_chunks(theta, m, g, momentum, gain, decay):
    """`advance_products` with chunks on several threads; sums do not depend on their number."""
    chunks = (m.size + CHUNK - 1) // CHUNK
    sums = np.empty((chunks, 3))
    for c in prange(chunks):
        a, b = c * CHUNK, min(m.size, (c + 1) * CHUNK)
        sums[c, 0], sums[c, 1], sums[c, 2] = advance_products(
            theta[a:b], m[a:b], g[a:b], momentum, gain, decay
        )
    m_square, theta_square, product = 0.0, 0.0, 0.0
    for c in range(chunks):
        m_square += sums[c, 0]
        theta_square += sums[c, 1]
        product += sums[c, 2]
    return m_square, theta_square, product


@compiled
def candidates_distance(candidates, count, threshold, radius):
    """||theta - v||^2 over the candidates; v is not 0 where |m| is at least the threshold."""
    distance = 0.0
    m, theta = candidates[0, :count], candidates[1, :count]
    for i in range(m.size):
        minus_v = radius if m[i] > 0 else -radius
        difference = float(theta[i]) + (minus_v if abs(m[i]) >= threshold else 0.0)
        distance += difference * difference
    return distance


@compiled
def move(theta, m, threshold, stay, step, along):
    """theta <- stay theta - step sign(m) where |m| is at least the threshold, else stay theta.

    If `along`, step m takes the place of step sign(m).
    """
    zero = theta.dtype.type(0)
    for i in range(m.size):
        x = m[i]
        towards = -step * x if along else (-step if x > zero else (step if x < zero else zero))
        theta[i] = stay * theta[i] + (towards if abs(x) >= threshold else zero)


@compiled_parallel
def move_chunks(theta, m, threshold, stay, step, along):
    """`move` with chunks on several threads, the last first: `advance` left it in the caches."""
    chunks = (m.size + CHUNK - 1) // CHUNK
    for c in prange(chunks):
        a = (chunks - 1 - c) * CHUNK
        b = min(m.size, a + CHUNK)
        move(theta[a:b], m[a:b], threshold, stay, step, along)
