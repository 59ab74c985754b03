"""The kernels of SFW's step on a GPU, run by Triton's interpreter, against the plain step.

`test_interpreted.py` runs this file in a process of its own: Triton reads TRITON_INTERPRET as it
is imported.
"""

import json
import math

import numpy as np
import pytest
import torch

from constraints import KSparsePolytope, LpBall
from optim import cuda
from optim.cuda import self_test, step
from optim.cuda.step import BLOCK, FusedStep, Slot
from optim.sfw import plain_step

RESCALES = ("gradient", "diameter", None)
TINY = 2.0**-149  # the smallest number that is not 0
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, at infinities


def group_of(rescale="gradient", lr=0.5, momentum=0.9, weight_decay=0.0, **more):
    known = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rescale": rescale}
    return known | more


def slot_of(weights, region, group):
    """A parameter before its first step: nothing may depend on what is in its buffer then."""
    unknown = torch.full_like(weights, 7.0)
    return Slot(weights, torch.zeros_like(weights), unknown, torch.zeros(()), region, group)


def gamma_of(slot):
    return {"gradient": None, "diameter": 1 / slot.region.diameter, None: 1.0}[
        slot.group["rescale"]
    ]


def check_step(fused, slots, rtol=1e-5, atol=1e-7):
    """Take a step and compare it with the plain one, given the same buffer: ties must agree."""
    expected = []
    for slot in slots:
        group, p, m = slot.group, slot.weights.clone(), slot.momentum.clone()
        g = -slot.gradient if group.get("maximize") else slot.gradient
        keep = group["momentum"] if slot.steps > 0 else 0.0
        plain_step(
            p, m, slot.region, group["lr"], gamma_of(slot), keep, g + group["weight_decay"] * p
        )
        expected.append((slot.weights.clone(), m))
    fused(slots)
    for slot, (p, m) in zip(slots, expected, strict=True):
        torch.testing.assert_close(slot.momentum, m, rtol=1e-6, atol=1e-7, equal_nan=True)
        lr = slot.group["lr"]
        plain_step(p, m.clone(), slot.region, lr, gamma_of(slot), 0.0, slot.momentum)
        torch.testing.assert_close(slot.weights, p, rtol=rtol, atol=atol, equal_nan=True)


def test_steps_are_the_plain_ones_whatever_the_tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (1,), (2,), (3,), (63,), (10,), (2, 31), (33, 41), (5, 3, 3, 3), (4, 7, 2, 3), (6, 5, 4),
        (2, 3, 2, 3, 2), (BLOCK,), (BLOCK + 1,), (3, 50, 8, 8), (20, 9, 5, 5),
    ]  # fmt: skip
    groups = [
        group_of("gradient"),
        group_of("diameter", lr=torch.tensor(0.9), momentum=0.3, weight_decay=0.1),
        group_of(None, lr=0.1, momentum=0.0, maximize=True),
    ]
    slots = []
    for i, shape in enumerate(shapes):
        n, levels = math.prod(shape), (1, 2, 8, 1000)[i % 4]
        weights = torch.randn(shape, generator=generator) * 0.1
        if len(shape) > 2 and i % 5:
            weights = weights.movedim(1, -1).contiguous().movedim(-1, 1)
        k = (1, n, max(1, n // 20), (n + 1) // 2)[(i // 2) % 4]
        slots.append(slot_of(weights, KSparsePolytope(n, k, radius=0.3), groups[i % 3]))
        assert slots[-1].is_taken()
    fused = FusedStep()
    for t in range(3):
        for i, slot in enumerate(slots):
            levels = (1, 2, 8, 1000)[i % 4]  # few values: many ties, many zeros
            draw = torch.randn(slot.weights.shape, generator=generator)
            slot.gradient.copy_((draw * levels).round() / levels)
        check_step(fused, slots)
        assert all(slot.steps == t + 1 for slot in slots)


def test_lp_balls_with_sparse_vertices_are_taken_too():
    balls = [LpBall(50, p, radius=2.0) for p in (1, math.inf)]
    slots = [slot_of(torch.zeros(50), ball, group_of()) for ball in balls]
    for slot in slots:
        slot.gradient.copy_(torch.linspace(-1, 0.9, 50))
    check_step(FusedStep(), slots)
    assert (slots[0].weights != 0).sum() == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_first_of_many_that_tie_are_chosen_over_many_blocks(channels_last, monkeypatch):
    weights = torch.zeros(7, 40, 6, 6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weights = weights.contiguous(memory_format=layout)
    regions = [KSparsePolytope(weights.numel(), k, radius=1.0) for k in (1, BLOCK, 7777)]
    slots = [slot_of(weights.clone(), region, group_of(None, lr=1.0)) for region in regions]
    for slot in slots:
        slot.gradient.fill_(-0.25)[0, 0, 0, 3] = -0.5
    monkeypatch.setattr(step, "CHUNK", 2)  # as if there were a thousand times as many
    FusedStep()(slots)
    for slot in slots:
        chosen = slot.weights.flatten().nonzero().flatten().tolist()
        assert chosen == ([3] if slot.region.k == 1 else list(range(slot.region.k)))


@pytest.mark.parametrize("rescale", RESCALES)
def test_what_is_zero_tiny_huge_or_infinite_is_as_in_the_plain_step(rescale):
    values = [
        [0.0] * 6,
        [0.0, 1.0, 0.0, -2.0, 0.0, 0.0],
        [TINY, -3 * TINY, 2 * TINY, 0.0, -TINY, TINY],
        [1e-20, -1e-30, 1e-38, 1e-42, 0.0, 0.0],
        [1e30, -3e38, 2e38, 1.0, 0.0, -1e38],
        [math.inf, 1.0, -1.0, 0.0, 2.0, 3.0],
        [math.inf, -math.inf, math.inf, 1.0, -math.inf, 0.0],
        [-0.0, 0.0, -0.0, 1e-45, -0.0, 0.0],
    ]
    group, slots = group_of(rescale, lr=0.25), []
    for k in (1, 4):
        for numbers in values:
            slot = slot_of(torch.linspace(-0.4, 0.5, 6), KSparsePolytope(6, k, radius=0.5), group)
            slot.gradient.copy_(torch.tensor(numbers))
            slots.append(slot)
    check_step(FusedStep(), slots)


@pytest.mark.parametrize("rescale", RESCALES)
def test_what_is_not_a_number_in_a_gradient_is_seen_in_buffer_and_weights(rescale):
    gradient = torch.tensor([math.nan, 3.0, -2.0, 1.0])
    slots = [
        slot_of(torch.zeros(4), KSparsePolytope(4, k, radius=0.5), group_of(rescale))
        for k in (1, 2, 4)
    ]
    sound = slot_of(torch.zeros(4), KSparsePolytope(4, 2, radius=0.5), slots[0].group)
    sound.gradient.fill_(1.0)
    for slot in slots:
        slot.gradient.copy_(gradient)
    FusedStep()([*slots, sound])
    for slot in slots:
        assert torch.equal(slot.momentum.isnan(), gradient.isnan())
        assert slot.weights[0].isnan()
        assert slot.weights.isnan().all() == (rescale == "gradient")
        if rescale is None:  # what is not a number counts as the largest
            v = [0.0, -0.5, 0.5, -0.5]
            expected = [x if i < slot.region.k else 0.0 for i, x in enumerate(v)]
            assert slot.weights[1:].tolist() == [0.5 * x for x in expected[1:]]
    assert sound.weights.isfinite().all()


def test_sums_are_over_all_of_many_blocks(monkeypatch):
    monkeypatch.setattr(step, "CHUNK", 2)
    n = 4 * BLOCK + 1
    slot = slot_of(torch.linspace(-0.01, 0.02, n), KSparsePolytope(n, 9, radius=1.0), group_of())
    slot.gradient.copy_(torch.linspace(-0.001, 0.002, n))
    check_step(FusedStep(), [slot])


def test_a_learning_rate_below_0_moves_nothing():
    slot = slot_of(torch.linspace(0, 1, 9), KSparsePolytope(9, 2, radius=1.0), group_of(lr=-0.1))
    before = slot.weights.clone()
    slot.gradient.fill_(1.0)
    FusedStep()([slot])
    assert torch.equal(slot.weights, before)


def test_a_vertex_stays_where_it_is():
    region, vertex = KSparsePolytope(4, 2, radius=1.0), torch.tensor([-1.0, 0.0, 1.0, 0.0])
    slots = [slot_of(vertex.clone(), region, group_of(lr=lr)) for lr in (0.5, 0.0)]
    slots.append(slot_of(vertex.clone(), region, group_of()))
    for slot in slots[:2]:
        slot.gradient.copy_(-vertex)
    FusedStep()(slots)
    assert all(torch.equal(slot.weights, vertex) for slot in slots)


def test_trajectories_are_the_authors(golden):
    slots, files = [], []
    for rescale in ("None", "diameter", "gradient"):
        for momentum in ("0.0", "0.9"):
            file = np.load(golden(f"sfw_k_sparse_{rescale}_{momentum}.npz"))
            group = group_of(
                None if rescale == "None" else rescale, float(file["lr"]), float(momentum)
            )
            for i in range(len(json.loads(str(file["shapes"])))):
                weights = torch.tensor(file[f"init{i}"])
                k, diameter = int(file[f"k{i}"]), float(file["diameter"])
                region = KSparsePolytope(weights.numel(), k, diameter=diameter)
                slots.append(slot_of(weights, region, group))
                files.append((file, i))
    fused = FusedStep()
    for t in range(6):
        for slot, (file, i) in zip(slots, files, strict=True):
            slot.gradient.copy_(torch.tensor(file[f"grad{t}_{i}"]))
        fused(slots)
        for slot, (file, i) in zip(slots, files, strict=True):
            np.testing.assert_allclose(slot.weights, file[f"param{t}_{i}"], rtol=2e-6, atol=2e-6)


def test_new_gradients_learning_rates_and_parameters_are_noticed():
    fused, group = FusedStep(), group_of(lr=0.5)
    first, second = (
        slot_of(torch.zeros(n), KSparsePolytope(n, 2, radius=1.0), group) for n in (5, 9)
    )
    kept = []  # so that no address is used again
    for lr, slots in ((0.5, [first]), (0.1, [first, second]), (torch.tensor(0.2), [second])):
        group["lr"] = lr
        for i, slot in enumerate(slots):
            kept.append(slot)
            slots[i] = slot._replace(gradient=torch.linspace(-1, lr, slot.region.n))
        check_step(fused, slots)
    assert (first.steps, second.steps) == (2, 2)


def test_the_self_test_passes_and_notices_a_broken_kernel(monkeypatch):
    device = torch.device("cpu")
    assert cuda.available(device) is None
    self_test._try.cache_clear()
    monkeypatch.setattr(self_test, "LR", 0.4)  # of the plain step and of the fused one
    assert cuda.available(device) is None
    self_test._try.cache_clear()
    monkeypatch.setattr("optim.cuda.step.LATER_DIGITS", ((10, 10),))
    assert "differ from the plain step's by" in cuda.available(device)
