"""The smallest of many integer keys, which may be spread over several processes.

The K-th smallest is found digit by digit from the top: of the keys that begin with the digits known
so far, all processes count how many have which digit next. Their counts add up.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from constraints.parts import Computation, Norm

# Bits of a digit: three digits make the 31 bits of a float32 magnitude.
DIGIT = 11


def magnitude_keys(x: Tensor, largest_first: bool = False) -> Tensor:
    """Integers that order as the magnitudes of the entries of `x`, flat, or in the opposite way.

    They have `key_bits(x.dtype)` bits. NaN is larger than infinity.
    """
    if x.dtype == torch.float64:
        keys = x.reshape(-1).view(torch.int64) & torch.iinfo(torch.int64).max
    else:
        keys = x.reshape(-1).float().view(torch.int32) & torch.iinfo(torch.int32).max
    return keys.bitwise_xor_(torch.iinfo(keys.dtype).max) if largest_first else keys


def key_bits(dtype: torch.dtype) -> int:
    return 63 if dtype == torch.float64 else 31


def count_digits(keys: Tensor, known: Tensor | int, shift: int, width: int) -> Tensor:
    """How many of the keys that begin with `known` have which digit next.

    The digit is the `width` bits above the lowest `shift`; `known` is all bits above those.
    """
    digits = keys >> shift
    begin, digits = (digits >> width) == known, digits & ((1 << width) - 1)
    if keys.is_cpu:
        return torch.bincount(digits[begin], minlength=1 << width)
    counts = torch.zeros(1 << width, dtype=torch.int64, device=keys.device)
    return counts.scatter_add_(0, digits.long(), begin.long())


def kth_smallest(
    keys: Sequence[Callable[[], Tensor]], k: int | Tensor, bits: int, n: int
) -> Computation:
    """The K-th smallest of all tensors' keys, how many of the K smallest equal it, and of all keys.

    `keys` give those that this process has of each tensor; they have `bits` bits, and there are at
    most `n` in all. K is at least 1 and at most the number of all keys. The three results are
    integer tensors without dimensions. Asks for the whole of counts of shape (tensors, digits).
    """
    known, wanted, shift = 0, k, bits
    dtype = torch.int32 if n < 1 << 31 else torch.int64  # the shorter messages
    while shift:
        width = min(DIGIT, shift)
        shift -= width
        counts = torch.stack([count_digits(x(), known, shift, width) for x in keys])
        counts = yield Norm(counts.to(dtype))
        up_to = counts.sum(0).cumsum(0)
        before = up_to < wanted
        smaller = up_to.where(before, 0).amax()
        equal = up_to.where(~before, torch.iinfo(up_to.dtype).max).amin() - smaller
        known, wanted = (known << width) + before.sum(), wanted - smaller
    return known, wanted, equal


def smallest(
    keys: Sequence[Callable[[], Tensor]],
    k: int,
    bits: int,
    positions: Sequence[Callable[[Tensor], Tensor]],
    n: int,
    ties_at: int | None = None,
) -> Computation:
    """For each tensor, whether each of this process's keys is one of the K smallest of all `n`.

    Of keys that tie at the K-th, the first in the order of `positions` are taken. For each tensor
    that is a function that gives, for places in this process's keys, where among all `n` they are.
    But if the K-th key is `ties_at`, all that tie are taken. Waits for a device once.
    """
    kth, room, tied = yield from kth_smallest(keys, k, bits, n)
    if tied <= room or (ties_at is not None and kth == ties_at):
        return [x() <= kth for x in keys]
    ties = [(x() == kth).nonzero().view(-1) for x in keys]
    places = [where(tie) for where, tie in zip(positions, ties, strict=True)]
    in_order = [functools.partial(torch.clone, x) for x in places]
    last, _, _ = yield from kth_smallest(in_order, room, n.bit_length(), n)
    chosen = [x() < kth for x in keys]
    for mask, tie, place in zip(chosen, ties, places, strict=True):
        mask[tie] = place <= last
    return chosen
