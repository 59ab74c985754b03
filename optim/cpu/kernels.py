"""Compiled loops of SFW's step on the CPU (see `optim.cpu.step`).

The functions take slices and loop over them from 0 to their size: if an index could be negative,
Numba would check each access, and the loop would not be vectorised. Scalars have the arrays' type.
"""

import functools
import math
from typing import Any

import numpy as np
from numba import carray, njit

from optim.cpu.callbacks import compiled_callback, fetch_and_add, pointer, prefetch

# Entries of a large tensor that a thread works on at a time, of which so many may be candidates,
# and entries that are summed in the tensors' own precision before the sum is added to a float64.
CHUNK, ROOM, BLOCK = 1 << 15, 1 << 12, 1 << 8
# Blocks are fetched from memory so many ahead, in cache lines of so many bytes: while a block is
# searched for candidates, the processor does not find out by itself that it will need the next.
AHEAD, LINE = 2, 64
# A sample consists of runs of RUN neighbours. Run r is number (r GOLDEN mod 1) times the number of
# runs in the tensor: such numbers are spread evenly.
RUN, GOLDEN = 16, 0.6180339887498949
# Where v is a multiple of m, ||theta - v||^2 is a difference of sums of float32 numbers. They are
# trusted if ||m||^2 is more than SMALLEST, and the difference more than LEAST_LEFT times
# ||theta||^2 + ||v||^2.
SMALLEST, LEAST_LEFT = 1e-25, 1e-2

# A tensor's part in a step: what Python gives, and from "low" on what the phases leave.
TENSOR = np.dtype(
    [(name, "i8") for name in ("theta", "m", "g")]  # addresses
    # `k` entries of v are not 0 (0: v is along m). The tensor's chunks follow `first` others; one
    # taken whole has one. `most` and `fewest` of `sample` entries exceed the bracket's two ends.
    + [(name, "i8") for name in ("n", "k", "first", "chunks", "sample", "most", "fewest")]
    + [(name, "f8") for name in ("momentum", "decay", "radius", "lr", "gamma")]  # NaN: a ratio
    # v is -unit sign(m), or -unit m, where |m| exceeds `threshold`. alpha is NaN if unknown.
    + [(name, "f8") for name in ("low", "high", "threshold", "unit", "alpha")]
)
# What threads share: the next item of a phase and their number; addresses; the chunks of all
# tensors and of the large ones, which come first.
SHARED = ("next", "items", "phase", "tensors", "rows", "chunks", "sums", "candidates")
CALL = np.dtype([(name, "i8") for name in SHARED])
BRACKET, ADVANCE, SELECT, MOVE = range(4)

# Sums may be reordered into vector lanes; infinities and NaN keep their meaning.
compiled = njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@compiled
def fetch(theta, m, g, start, size):
    """Have `size` entries of each array fetched into the cache; they need not all exist."""
    for offset in range(start * m.itemsize, (start + size) * m.itemsize, LINE):
        prefetch(theta.ctypes.data + offset)
        prefetch(m.ctypes.data + offset)
        prefetch(g.ctypes.data + offset)


@compiled
def copy_flagged(words, hits, places, theta, m, theta_found, m_found, found):
    """Copy entries whose flags, eight in a word, are 1, to place `found` and on; returns the next.

    What has no room overwrites the last one. Nothing branches on a flag: in `hits` and `places`,
    which are scratch space, the next one overwrites what does not count.
    """
    flags, count, inside = words.view(np.uint8), 0, 0
    for w in range(words.size):
        hits[count] = w
        count += words[w] != 0
    for w in hits[:count]:
        for i in range(8 * w, 8 * w + 8):
            places[inside] = i
            inside += flags[i]
    for i in places[:inside]:
        place = min(found, m_found.size - 1)
        theta_found[place], m_found[place] = theta[i], m[i]
        found += 1
    return found


@compiled
def advance(t, theta, m, g, sums, theta_found, m_found):
    """Advance m, sum it up, and copy theta and m of the candidates to `theta_found`, `m_found`.

    m <- momentum m + (1 - momentum) (g + decay theta). Candidates have magnitudes above `low` and
    up to `high`. `sums` becomes ||m||^2; ||theta - v||^2 without the candidates, for v = -radius
    sign(m) above `high`; <theta, m>; the numbers of entries above `high` and of candidates.
    """
    number = theta.dtype.type
    one, zero, momentum, gain = number(1), number(0), number(t.momentum), number(1 - t.momentum)
    decay, low, high = number(t.decay), number(t.low), number(t.high)
    radius = number(t.radius if t.k else 0.0)
    words, hits = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK // 8, np.int64)
    flags, places = words.view(np.uint8), np.empty(BLOCK, np.int64)
    square, distance, product, above, found = 0.0, 0.0, 0.0, 0.0, 0
    for j in range(0, m.size, BLOCK):
        theta_, m_, g_ = theta[j : j + BLOCK], m[j : j + BLOCK], g[j : j + BLOCK]
        block_square, block_distance, block_product, block_above = zero, zero, zero, zero
        fetch(theta, m, g, j + AHEAD * BLOCK, BLOCK)
        if m_.size < BLOCK:
            words[:] = 0  # flags of the block before
        for i in range(m_.size):
            weight = theta_[i]
            x = momentum * m_[i] + gain * (g_[i] + decay * weight)
            m_[i] = x
            block_square += x * x
            block_product += x * weight
            magnitude = abs(x)
            minus_v = radius if x > zero else -radius
            difference = weight + (minus_v if magnitude > high else zero)
            inside = (magnitude > low) & (magnitude <= high)
            block_distance += zero if inside else difference * difference
            block_above += one if magnitude > high else zero
            flags[i] = np.uint8(1) if inside else np.uint8(0)
        square += block_square
        distance += block_distance
        product += block_product
        above += block_above
        if low < high:
            found = copy_flagged(words, hits, places, theta_, m_, theta_found, m_found, found)
    sums[0], sums[1], sums[2], sums[3], sums[4] = square, distance, product, above, found


@compiled
def exceeding(m, threshold):
    """How many magnitudes exceed the threshold."""
    one, zero, count = m.dtype.type(1), m.dtype.type(0), 0
    for j in range(0, m.size, CHUNK):
        m_, block = m[j : j + CHUNK], zero
        for i in range(m_.size):
            block += one if abs(m_[i]) > threshold else zero
        count += int(block)
    return count


@compiled
def select(m, k, above, low, high):
    """A threshold that the k largest magnitudes exceed, twice; where several tie, those next to it.

    `above` counts magnitudes that are not in `m`; fewer than k exceed `high`. If no more than k
    exceed `low`, that is the threshold.
    """
    number = m.dtype.type
    at_low, at_high, trial = above + exceeding(m, number(low)), above, 0
    while at_low > k:
        if low == 0:
            middle = float(number(high / 4))
        else:  # the logarithm of the count is about linear
            part = math.log(at_low / k) / math.log(at_low / max(at_high, 0.5))
            middle = float(number(low + (high - low) * part))
        if (trial % 3 == 2 and low > 0) or not low < middle < high:
            middle = float(number(math.sqrt(low) * math.sqrt(high)))
        if not low < middle < high:
            return low, high
        count = above + exceeding(m, number(middle))
        if count > k:
            low, at_low = middle, count
        elif count < k:
            high, at_high = middle, count
        else:
            low, at_low = middle, k
        trial += 1
    return low, low


@compiled
def bound(square, k):
    """What fewer than k magnitudes exceed, from the sum of all squares."""
    return math.sqrt(square / k) * 1.001 if square > SMALLEST else 1e38


@compiled
def bracket(t, theta, m, g):
    """Set `low` and `high` around the K-th magnitude that m will have, very likely, by a sample."""
    number = m.dtype.type
    momentum, gain, decay = number(t.momentum), number(1 - t.momentum), number(t.decay)
    magnitudes, square = np.empty(t.sample, m.dtype), 0.0
    starts = (np.arange(t.sample // RUN) * GOLDEN % 1.0 * (t.n // RUN)).astype(np.int64) * RUN
    for a in starts:
        fetch(theta, m, g, a, RUN)
    for r, a in enumerate(starts):
        theta_, m_, g_ = theta[a : a + RUN], m[a : a + RUN], g[a : a + RUN]
        run, part = magnitudes[r * RUN : (r + 1) * RUN], number(0)
        for i in range(run.size):
            run[i] = abs(momentum * m_[i] + gain * (g_[i] + decay * theta_[i]))
            part += run[i] * run[i]
        square += part
    few = t.fewest
    t.high = select(magnitudes, few, 0, 0.0, bound(square, few))[1] if few else math.inf
    t.low = select(magnitudes, t.most, 0, 0.0, bound(square, t.most))[0]


@compiled
def distance_to_vertex(theta, m, threshold, radius):
    """||theta - v||^2, where v is -radius sign(m) where |m| exceeds the threshold."""
    zero, distance = m.dtype.type(0), 0.0
    for j in range(0, m.size, BLOCK):
        theta_, m_, block = theta[j : j + BLOCK], m[j : j + BLOCK], zero
        for i in range(m_.size):
            minus_v = radius if m_[i] > zero else -radius
            difference = theta_[i] + (minus_v if abs(m_[i]) > threshold else zero)
            block += difference * difference
        distance += block
    return distance


@compiled
def settle(t, theta, m, sums, theta_found, m_found):
    """Set `threshold`, `unit` and `alpha`, from sums and candidates of each chunk.

    alpha is NaN, for the plain step, if an entry of m is not finite, more entries tie than v has
    room for, or sums are not accurate enough. The threshold is selected from all entries of small
    tensors, and where the bracket has failed.
    """
    square, distance, product = sums[:, 0].sum(), sums[:, 1].sum(), sums[:, 2].sum()
    above, found, fits = int(sums[:, 3].sum()), 0, t.low < t.high and sums[:, 4].max() < ROOM
    for c in range(t.chunks if fits else 0):
        for i in range(c * ROOM, c * ROOM + int(sums[c, 4])):  # gather them at the front
            theta_found[found], m_found[found] = theta_found[i], m_found[i]
            found += 1
    t.alpha, t.threshold, t.unit, gamma = math.nan, 0.0, t.radius, t.gamma
    if not math.isfinite(square) or (t.k == 0 and square <= SMALLEST):
        return
    if t.k == 0:
        t.unit, squares = t.radius / math.sqrt(square), distance + t.radius**2
        distance = squares + 2 * t.unit * product
        if distance <= LEAST_LEFT * squares:
            return
    elif t.k < t.n:
        low, high = t.low, min(t.high, bound(square, t.k))
        if fits and above < t.k and (above + found >= t.k or low == 0):
            theta, m = theta_found[:found], m_found[:found]
        else:
            low, high, above, distance = 0.0, bound(square, t.k), 0, 0.0
        t.threshold, other = select(m, t.k, above, low, high)
        if t.threshold != other:
            return
        distance += distance_to_vertex(theta, m, m.dtype.type(t.threshold), m.dtype.type(t.radius))
    if math.isnan(gamma):
        gamma = 0.0 if square == 0 else math.inf if distance <= 0 else math.sqrt(square / distance)
    # A product of 0 and infinity, at a vertex, is 0.
    t.alpha = 0.0 if t.lr <= 0 or gamma == 0 else min(t.lr * gamma, 1.0)


@compiled
def move(t, theta, m):
    """theta <- (1 - alpha) theta + alpha v."""
    if math.isnan(t.alpha):
        return
    number, along = theta.dtype.type, t.k == 0
    zero, threshold, stay = number(0), number(t.threshold), number(1 - t.alpha)
    step = number(t.alpha) * number(t.unit)
    for i in range(m.size):
        x = m[i]
        towards = -step * x if along else (-step if x > zero else step)
        theta[i] = stay * theta[i] + (towards if abs(x) > threshold else zero)


@functools.cache
def phase(number: type[np.floating]) -> Any:
    """What each thread calls with the address of a CALL, to work until no item of a phase is left.

    Items are the large tensors, or chunks: of all tensors when buffers advance, which finishes the
    small ones, and of the large ones when these are moved.
    """

    def work(address):
        call = carray(pointer(address), 1, CALL)[0]
        tensors = carray(pointer(call.tensors), call.rows, TENSOR)
        sums = carray(pointer(call.sums), (call.rows, 5), np.float64)
        found = carray(pointer(call.candidates), 2 * call.chunks * ROOM, number)
        theta_found, m_found = found[: call.chunks * ROOM], found[call.chunks * ROOM :]
        item = fetch_and_add(address)
        while item < call.items:
            # What was advanced last is in the caches, and moved first.
            i, c = item, call.items - 1 - item if call.phase == MOVE else item
            if call.phase == ADVANCE or call.phase == MOVE:
                i = 0
                while tensors[i].first + tensors[i].chunks <= c:
                    i += 1
            t = tensors[i]
            first, end, whole = t.first, t.first + t.chunks, c >= call.chunks
            a, b = (0, t.n) if whole else ((c - first) * CHUNK, min(t.n, (c - first + 1) * CHUNK))
            theta = carray(pointer(t.theta), t.n, number)
            m = carray(pointer(t.m), t.n, number)
            g = carray(pointer(t.g), t.n, number)
            if call.phase == BRACKET and t.sample:
                bracket(t, theta, m, g)
            elif call.phase == ADVANCE:
                r, s = (0, 0) if whole else (c * ROOM, (c + 1) * ROOM)
                room = theta_found[r:s], m_found[r:s]
                advance(t, theta[a:b], m[a:b], g[a:b], sums[c], *room)
            if call.phase == SELECT or (call.phase == ADVANCE and whole):
                r, s = (0, 0) if whole else (first * ROOM, end * ROOM)
                settle(t, theta, m, sums[first:end], theta_found[r:s], m_found[r:s])
            if call.phase == MOVE or (call.phase == ADVANCE and whole):
                move(t, theta[a:b], m[a:b])
            item = fetch_and_add(address)

    return compiled_callback(work)
