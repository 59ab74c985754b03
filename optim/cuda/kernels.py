"""Triton kernels of SFW's step on a GPU; `optim.cuda.step` launches them and gives their order.

A program works on one block of one tensor's entries or on one whole tensor. `rows` holds a row of
64-bit words for each tensor. `words` holds what may change from one step to the next: first two
words for each tensor, then GROUP_WORDS for each parameter group. `state` holds what is known of
each tensor's K-th largest magnitude. Magnitudes are compared as integers by their bits, which gives
the same order.
"""

import triton
import triton.language as tl

# The columns of a row. Entries are numbered as they lie in memory or in the tensor's own order,
# which differ where the memory format is channels-last.
THETA = tl.constexpr(0)  # address of the weights
MOMENTUM = tl.constexpr(1)  # address of the momentum buffer
SIZE = tl.constexpr(2)  # number of entries
CHOSEN = tl.constexpr(3)  # K
CHANNELS = tl.constexpr(4)  # channels if the format is channels-last, else 1
SPATIAL = tl.constexpr(5)  # entries of one channel of one sample if channels-last, else 1
FIRST_BLOCK = tl.constexpr(6)
END_BLOCK = tl.constexpr(7)
RADIUS = tl.constexpr(8)
GAMMA = tl.constexpr(9)  # 0 stands for ||m|| / ||theta - v||
GROUP = tl.constexpr(10)  # where in `words` the parameter group is
COLUMNS = tl.constexpr(16)

# The words of a tensor.
GRADIENT = tl.constexpr(0)  # address of the gradient
WEIGHT = tl.constexpr(1)  # 1 - momentum; 1 at a first step
TENSOR_WORDS = tl.constexpr(2)

# The words of a parameter group.
LR_ADDRESS = tl.constexpr(0)  # of a learning rate on the device; 0 if it is a number
LR = tl.constexpr(1)
DECAY = tl.constexpr(2)
GROUP_WORDS = tl.constexpr(4)

# The state of a tensor.
PREFIX = tl.constexpr(0)  # the leading bits of the K-th largest magnitude, in the end all
WANTED = tl.constexpr(1)  # how many of the entries with these leading bits are chosen
LIMIT = tl.constexpr(2)  # entries that tie are chosen if they are before this one; -1: not known
STATE = tl.constexpr(4)

# The 31 bits of a magnitude are found in digits of 11, 10 and 10 bits.
FIRST_SHIFT = tl.constexpr(20)
BINS = tl.constexpr(2048)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
INFINITY = tl.constexpr(0x7F800000)

# A word w is passed to `write` as 2 w + 1 with the highest bit set. That is odd and takes 64 bits
# for every w. For numbers that are even or take 32 bits, Triton would compile further kernels.
HIGHEST = tl.constexpr(1 << 62)


@triton.jit
def integer(word):
    return tl.load(word).to(tl.int32)


@triton.jit
def number(word):
    return tl.load(word).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def array(word):
    return tl.load(word).to(tl.pointer_type(tl.float32))


@triton.jit
def entries(rows, blocks, BLOCK: tl.constexpr):
    """The tensor of this program's block, its row, and its entries' places in memory."""
    block = tl.program_id(0)
    tensor = tl.load(blocks + block)
    row = rows + tensor * COLUMNS
    i = (block - integer(row + FIRST_BLOCK)) * BLOCK + tl.arange(0, BLOCK)
    return tensor, row, i, i < integer(row + SIZE)


@triton.jit
def interpolate(a, b, weight):
    """a + weight (b - a), computed from the nearer end as `torch.lerp` does."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))


@triton.jit
def reorder(i, inner, outer):
    """Where entry `i` of a tensor of shape (any, outer, inner) is once these two are swapped."""
    pair = i // inner
    return (pair // outer * inner + i % inner) * outer + pair % outer


@triton.jit
def write(words, start, values):
    """Write what `values`, arguments of the launch, stand for, from place `start` on."""
    for i in tl.static_range(len(values)):
        tl.store(words + start + i, (values[i] ^ HIGHEST) >> 1)


@triton.jit
def advance(rows, words, blocks, counts, squares, BLOCK: tl.constexpr):
    """Advance m, sum its squares by block, and count its magnitudes by their first digit.

    m <- g where the weight is 1, else m + weight (g - m). A sum over what is infinite or NaN is
    NaN. Magnitudes of 0 are not counted: v is 0 there whether they are chosen or not.
    """
    tensor, row, i, inside = entries(rows, blocks, BLOCK)
    own = words + tensor * TENSOR_WORDS
    m = tl.load(array(own + GRADIENT) + i, mask=inside, other=0.0)
    decay = number(words + tl.load(row + GROUP) + DECAY)
    if decay != 0:
        m += decay * tl.load(array(row + THETA) + i, mask=inside, other=0.0)
    momentum, weight = array(row + MOMENTUM) + i, number(own + WEIGHT)
    if weight < 1:
        m = interpolate(tl.load(momentum, mask=inside, other=0.0), m, weight)
    tl.store(momentum, m, mask=inside)
    bits = m.to(tl.int32, bitcast=True) & MAGNITUDE
    square = tl.where(bits < INFINITY, m * m, float("nan"))
    tl.store(squares + tl.program_id(0), tl.sum(square))
    count = tl.histogram(bits >> FIRST_SHIFT, BINS, mask=inside & (bits != 0))
    digits = tl.arange(0, BINS)
    tl.atomic_add(counts + tensor * BINS + digits, count, mask=count > 0, sem="relaxed")


@triton.jit
def select(rows, counts, state, BITS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Append the next digit to the known bits of the K-th largest magnitude; clear the counts.

    Where fewer than K magnitudes are not 0, the smallest of these takes its place.
    """
    tensor = tl.program_id(0)
    row, own = rows + tensor * COLUMNS, state + tensor * STATE
    digits = tl.arange(0, 1 << BITS)
    count = tl.load(counts + tensor * BINS + digits)
    tl.store(counts + tensor * BINS + digits, tl.full([1 << BITS], 0, tl.int32))
    prefix = tl.load(own + PREFIX)
    wanted = tl.load(own + WANTED)
    if FIRST:
        prefix = 0
        wanted = tl.minimum(integer(row + CHOSEN), tl.sum(count))
    at_least = tl.cumsum(count, reverse=True)
    digit = tl.sum((at_least >= wanted).to(tl.int32)) - 1
    wanted -= tl.sum(tl.where(digits > digit, count, 0))
    tl.store(own + PREFIX, (prefix << BITS) | digit)
    tl.store(own + WANTED, wanted)
    if LAST:
        all_chosen = tl.sum(tl.where(digits == digit, count, 0)) == wanted
        tl.store(own + LIMIT, tl.where(all_chosen, integer(row + SIZE), -1))


@triton.jit
def refine(
    rows, blocks, counts, state, BITS: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """Count the magnitudes that begin with the known bits by their next digit."""
    tensor, row, i, inside = entries(rows, blocks, BLOCK)
    m = tl.load(array(row + MOMENTUM) + i, mask=inside, other=0.0)
    bits = m.to(tl.int32, bitcast=True) & MAGNITUDE
    known = (bits >> (SHIFT + BITS)) == tl.load(state + tensor * STATE + PREFIX)
    digits = tl.arange(0, 1 << BITS)
    digit = (bits >> SHIFT) & ((1 << BITS) - 1)
    count = tl.histogram(digit, 1 << BITS, mask=known & (bits != 0))
    tl.atomic_add(counts + tensor * BINS + digits, count, mask=count > 0, sem="relaxed")


@triton.jit
def tied(row, own, i):
    """1 for entries that have the K-th largest magnitude, else 0; `i` is in the tensor's order."""
    place = reorder(i, integer(row + SPATIAL), integer(row + CHANNELS))
    m = tl.load(array(row + MOMENTUM) + place, mask=i < integer(row + SIZE), other=0.0)
    bits = m.to(tl.int32, bitcast=True) & MAGNITUDE
    return (bits == tl.load(own + PREFIX)).to(tl.int32)


@triton.jit
def count_ties(rows, blocks, state, ties, BLOCK: tl.constexpr):
    """Count by block, in the tensor's own order, the entries that tie where not all are chosen."""
    tensor, row, i, _ = entries(rows, blocks, BLOCK)
    own = state + tensor * STATE
    if tl.load(own + LIMIT) < 0:
        tl.store(ties + tl.program_id(0), tl.sum(tied(row, own, i)))


@triton.jit
def limit_ties(rows, state, ties, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Find the place in the tensor's own order before which entries that tie are chosen."""
    tensor = tl.program_id(0)
    row, own = rows + tensor * COLUMNS, state + tensor * STATE
    if tl.load(own + LIMIT) < 0:
        wanted = tl.load(own + WANTED)
        total, before, full = 0, 0, 0
        end = integer(row + END_BLOCK)
        for first in range(integer(row + FIRST_BLOCK), end, CHUNK):
            i = first + tl.arange(0, CHUNK)
            count = tl.load(ties + i, mask=i < end, other=0)
            short = total + tl.cumsum(count) < wanted
            full += tl.sum(short.to(tl.int32))  # blocks whose every tie is chosen, and not the last
            before += tl.sum(tl.where(short, count, 0))
            total += tl.sum(count)
        reached = before + tl.cumsum(tied(row, own, full * BLOCK + tl.arange(0, BLOCK)))
        tl.store(own + LIMIT, full * BLOCK + tl.sum((reached < wanted).to(tl.int32)) + 1)


@triton.jit
def vertex(m, row, own, i):
    """v at the entries `i` in memory, whose momentum is `m`."""
    limit = tl.load(own + LIMIT)
    place = i
    if limit < integer(row + SIZE):
        place = reorder(i, integer(row + CHANNELS), integer(row + SPATIAL))
    bits = m.to(tl.int32, bitcast=True)
    magnitude, threshold = bits & MAGNITUDE, tl.load(own + PREFIX)
    chosen = (magnitude > threshold) | ((magnitude == threshold) & (place < limit))
    radius = number(row + RADIUS)
    return tl.where(chosen, tl.where(bits < 0, radius, -radius), 0.0)


@triton.jit
def measure(rows, blocks, state, distances, BLOCK: tl.constexpr):
    """Sum the squares of theta - v by block, where gamma depends on them."""
    tensor, row, i, inside = entries(rows, blocks, BLOCK)
    if number(row + GAMMA) == 0:
        theta = tl.load(array(row + THETA) + i, mask=inside, other=0.0)
        m = tl.load(array(row + MOMENTUM) + i, mask=inside, other=0.0)
        difference = theta - vertex(m, row, state + tensor * STATE, i)
        tl.store(distances + tl.program_id(0), tl.sum(difference * difference))


@triton.jit
def set_alpha(rows, words, squares, distances, alphas, CHUNK: tl.constexpr):
    """Set alpha from the sums by block, which are always added in one order."""
    tensor = tl.program_id(0)
    row = rows + tensor * COLUMNS
    end = integer(row + END_BLOCK)
    square = tl.zeros([CHUNK], tl.float64)
    distance = tl.zeros([CHUNK], tl.float64)
    for first in range(integer(row + FIRST_BLOCK), end, CHUNK):
        i = first + tl.arange(0, CHUNK)
        square += tl.load(squares + i, mask=i < end, other=0.0).to(tl.float64)
        distance += tl.load(distances + i, mask=i < end, other=0.0).to(tl.float64)
    total = tl.sum(square) + tl.sum(distance)
    gamma = number(row + GAMMA).to(tl.float64)
    if gamma == 0:
        gamma = tl.sqrt(tl.sum(square)) / tl.sqrt(tl.sum(distance))
    group = words + tl.load(row + GROUP)
    lr = number(group + LR)
    if tl.load(group + LR_ADDRESS) != 0:
        lr = tl.load(array(group + LR_ADDRESS))
    alpha = lr * gamma
    # At a vertex ||theta - v|| is 0, and alpha is infinite or, with m = 0 or lr = 0, NaN; it then
    # counts as 1 or 0. But NaN in m or theta makes all of theta NaN.
    alpha = tl.where(alpha > 0, tl.minimum(alpha, 1.0), 0.0)
    tl.store(alphas + tensor, tl.where(total == total, alpha, total).to(tl.float32))


@triton.jit
def move(rows, blocks, state, alphas, BLOCK: tl.constexpr):
    """theta <- theta + alpha (v - theta)."""
    tensor, row, i, inside = entries(rows, blocks, BLOCK)
    theta = array(row + THETA) + i
    m = tl.load(array(row + MOMENTUM) + i, mask=inside, other=0.0)
    v = vertex(m, row, state + tensor * STATE, i)
    old = tl.load(theta, mask=inside, other=0.0)
    tl.store(theta, interpolate(old, v, tl.load(alphas + tensor)), mask=inside)
