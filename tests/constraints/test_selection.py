"""The K smallest keys of tensors in several processes, which take turns here."""

import functools

import torch
from hypothesis import given
from hypothesis import strategies as st

from constraints.parts import Norm
from constraints.selection import key_bits, magnitude_keys, smallest


def in_turns(computations):
    """The results of computations that add up each other's counts."""
    parts, results = [next(c) for c in computations], []
    while not results:
        whole = sum(part.values for part in parts)
        parts = []
        for c in computations:
            try:
                parts.append(c.send(whole.clone()))
            except StopIteration as end:
                results.append(end.value)
    assert not parts, "all end together"
    assert all(isinstance(part, Norm) for part in parts)
    return results


@st.composite
def numbers(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(draw(st.integers(1, 300)), generator=generator, dtype=torch.float64)
    levels = draw(st.sampled_from([0, 1, 3, 50]))
    x = (x * levels).round() / levels if levels else x
    x = x * draw(st.sampled_from([1e-42, 1.0, 1e37]))
    return x.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))


@given(numbers(), st.data())
def test_the_same_entries_are_chosen_however_they_are_spread(x, data):
    n, largest_first = len(x), data.draw(st.booleans())
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    owner = torch.randint(data.draw(st.integers(1, 4)) + 1, (n,), generator=generator)
    places = [(owner == process).nonzero().view(-1) for process in range(5)]  # some have none
    computations = [
        smallest(
            [functools.partial(magnitude_keys, x[own], largest_first)],
            k,
            key_bits(x.dtype),
            [lambda local, own=own: own[local]],
            n,
        )
        for own in places
    ]
    chosen = torch.zeros(n, dtype=torch.bool)
    for own, (mask,) in zip(places, in_turns(computations), strict=True):
        chosen[own] = mask
    order = x.abs().sort(descending=largest_first, stable=True).indices
    expected = torch.zeros(n, dtype=torch.bool)
    expected[order[:k]] = True
    assert torch.equal(chosen, expected)


def test_keys_order_as_magnitudes_and_nan_is_the_largest():
    x = torch.tensor([0.0, -1e-45, 2.0, -3e38, torch.inf, torch.nan])
    for values in (x, x.double()):
        keys = magnitude_keys(values)
        assert (keys.diff() > 0).all() and keys[0] == 0
        assert (magnitude_keys(values, largest_first=True).diff() < 0).all()
