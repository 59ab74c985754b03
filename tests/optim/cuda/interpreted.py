"""The kernels of SFW's step on a GPU, run by Triton's interpreter, against the plain step.

`test_interpreted.py` runs this file in a process of its own: Triton reads TRITON_INTERPRET as it
is imported.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from constraints import KSparsePolytope, LpBall
from optim import cuda
from optim.base import TensorStep
from optim.cuda import step
from optim.cuda.step import BLOCK, CudaStep
from optim.foreach import plain_step

RESCALES = ("gradient", "diameter", None)
TINY = 2.0**-149  # the smallest number that is not 0
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, at infinities


def group_of(rescale="gradient", lr=0.5, momentum=0.9, weight_decay=0.0):
    return {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rescale": rescale}


def step_of(theta, region, group, gradient=None):
    """A parameter's first step. Nothing may depend on what is in the buffer before it."""
    gradient = torch.zeros_like(theta) if gradient is None else gradient
    return TensorStep(theta, theta, gradient, torch.full_like(theta, 7.0), 0.0, region, group)


def copied(s):
    return replace(s, theta=s.theta.clone(), momentum_buffer=s.momentum_buffer.clone())


def check_step(cuda_step, steps):
    """Take a step and compare it with the plain one, given the same buffer: ties must agree."""
    before, expected = [copied(s) for s in steps], [copied(s) for s in steps]
    cuda_step(steps)
    plain_step(expected)
    for s, old, plain in zip(steps, before, expected, strict=True):
        m = s.momentum_buffer
        torch.testing.assert_close(m, plain.momentum_buffer, rtol=1e-6, atol=1e-7, equal_nan=True)
        old.group, old.gradient, old.momentum = old.group | {"weight_decay": 0.0}, m, 0.0
        plain_step([old])
        torch.testing.assert_close(s.theta, old.theta, rtol=1e-5, atol=1e-7, equal_nan=True)
        s.momentum = s.group["momentum"]


def test_steps_are_the_plain_ones_whatever_the_tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (1,),
        (2,),
        (3,),
        (63,),
        (10,),
        (2, 31),
        (33, 41),
        (5, 3, 3, 3),
        (4, 7, 2, 3),
        (6, 5, 4),
        (2, 3, 2, 3, 2),
        (BLOCK,),
        (BLOCK + 1,),
        (3, 50, 8, 8),
        (20, 9, 5, 5),
    ]
    groups = [
        group_of("gradient"),
        group_of("diameter", lr=torch.tensor(0.9), momentum=0.3, weight_decay=0.1),
        group_of(None, lr=0.1, momentum=0.0),
    ]
    steps = []
    for i, shape in enumerate(shapes):
        n = math.prod(shape)
        theta = torch.randn(shape, generator=generator) * 0.1
        if len(shape) > 2 and i % 5:
            theta = theta.movedim(1, -1).contiguous().movedim(-1, 1)
        k = (1, n, max(1, n // 20), (n + 1) // 2)[(i // 2) % 4]
        steps.append(step_of(theta, KSparsePolytope(n, k, radius=0.3), groups[i % 3]))
        assert cuda.obstacle(theta.device, steps[-1].region, steps[-1].tensors) is None
    cuda_step = CudaStep()
    for _ in range(3):
        for i, s in enumerate(steps):
            levels = (1, 2, 8, 1000)[i % 4]  # few values: many ties, many zeros
            draw = torch.randn(s.theta.shape, generator=generator)
            s.gradient.copy_((draw * levels).round() / levels)
        check_step(cuda_step, steps)


def test_lp_balls_with_sparse_vertices_are_taken_too():
    balls = [LpBall(50, p, radius=2.0) for p in (1, math.inf)]
    gradient = torch.linspace(-1, 0.9, 50)
    steps = [step_of(torch.zeros(50), ball, group_of(), gradient) for ball in balls]
    check_step(CudaStep(), steps)
    assert (steps[0].theta != 0).sum() == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_first_of_many_that_tie_are_chosen_over_many_blocks(channels_last, monkeypatch):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theta = torch.zeros(7, 40, 6, 6).contiguous(memory_format=layout)
    gradient = torch.full_like(theta, -0.25)
    gradient[0, 0, 0, 3] = -0.5
    group, steps = group_of(None, lr=1.0), []
    for k in (1, BLOCK, 7777):
        region = KSparsePolytope(theta.numel(), k, radius=1.0)
        steps.append(step_of(theta.clone(), region, group, gradient))
    monkeypatch.setattr(step, "CHUNK", 2)  # as if there were hundreds of times as many
    CudaStep()(steps)
    for s in steps:
        chosen = s.theta.flatten().nonzero().flatten().tolist()
        assert chosen == ([3] if s.region.k == 1 else list(range(s.region.k)))


def test_sums_are_over_all_of_many_blocks(monkeypatch):
    monkeypatch.setattr(step, "CHUNK", 2)
    n = 4 * BLOCK + 1
    theta, gradient = torch.linspace(-0.01, 0.02, n), torch.linspace(-0.001, 0.002, n)
    check_step(
        CudaStep(), [step_of(theta, KSparsePolytope(n, 9, radius=1.0), group_of(), gradient)]
    )


@pytest.mark.parametrize("rescale", RESCALES)
def test_what_is_zero_tiny_huge_or_not_finite_is_as_in_the_plain_step(rescale):
    gradients = [
        [0.0] * 6,
        [0.0, 1.0, 0.0, -2.0, 0.0, 0.0],
        [TINY, -3 * TINY, 2 * TINY, 0.0, -TINY, TINY],
        [1e-20, -1e-30, 1e-38, 1e-42, 0.0, 0.0],
        [1e30, -3e38, 2e38, 1.0, 0.0, -1e38],
        [-0.0, 0.0, -0.0, 1e-45, -0.0, 0.0],
        [math.inf, 1.0, -1.0, 0.0, 2.0, 3.0],
        [math.inf, -math.inf, math.inf, 1.0, -math.inf, 0.0],
        [math.nan, 3.0, -2.0, 1.0, 0.0, 0.0],
        [math.nan, math.inf, -math.nan, math.nan, -1.0, math.nan],
    ]
    group, steps = group_of(rescale, lr=0.25), []
    for k in (1, 4):
        for gradient in gradients:
            region, theta = KSparsePolytope(6, k, radius=0.5), torch.linspace(-0.4, 0.5, 6)
            steps.append(step_of(theta, region, group, torch.tensor(gradient)))
    check_step(CudaStep(), steps)
    for s in steps:
        finite = s.theta.isfinite() if s.gradient.isfinite().all() else s.theta.isnan()
        assert finite.all()


def test_weights_that_are_not_a_number_are_as_in_the_plain_step():
    theta = torch.tensor([math.nan, 0.1, 0.2])
    group, gradient = group_of(), torch.tensor([1.0, 2.0, 3.0])
    check_step(CudaStep(), [step_of(theta, KSparsePolytope(3, 1, radius=1.0), group, gradient)])


def test_a_learning_rate_below_0_moves_nothing():
    theta, region = torch.linspace(0, 1, 9), KSparsePolytope(9, 2, radius=1.0)
    s = step_of(theta.clone(), region, group_of(lr=-0.1), torch.ones(9))
    CudaStep()([s])
    assert torch.equal(s.theta, theta)


def test_a_vertex_stays_where_it_is():
    region, vertex = KSparsePolytope(4, 2, radius=1.0), torch.tensor([-1.0, 0.0, 1.0, 0.0])
    steps = [
        step_of(vertex.clone(), region, group_of(lr=lr), gradient)
        for lr, gradient in ((0.5, -vertex), (0.0, -vertex), (0.5, 0 * vertex))
    ]
    CudaStep()(steps)
    assert all(torch.equal(s.theta, vertex) for s in steps)


def test_trajectories_are_the_authors(golden):
    steps, files = [], []
    for rescale in RESCALES:
        for momentum in (0.0, 0.9):
            file = np.load(golden(f"sfw_k_sparse_{rescale}_{momentum}.npz"))
            group = group_of(rescale, float(file["lr"]), momentum)
            for i in range(len(json.loads(str(file["shapes"])))):
                theta = torch.tensor(file[f"init{i}"])
                k, diameter = int(file[f"k{i}"]), float(file["diameter"])
                region = KSparsePolytope(theta.numel(), k, diameter=diameter)
                steps.append(step_of(theta, region, group))
                files.append((file, i))
    cuda_step = CudaStep()
    for t in range(6):
        for s, (file, i) in zip(steps, files, strict=True):
            s.gradient.copy_(torch.tensor(file[f"grad{t}_{i}"]))
        cuda_step(steps)
        for s, (file, i) in zip(steps, files, strict=True):
            np.testing.assert_allclose(s.theta, file[f"param{t}_{i}"], rtol=2e-6, atol=2e-6)
            s.momentum = s.group["momentum"]


def test_new_gradients_learning_rates_and_parameters_are_noticed():
    cuda_step, group = CudaStep(), group_of()
    first, second = (
        step_of(torch.zeros(n), KSparsePolytope(n, 2, radius=1.0), group) for n in (5, 9)
    )
    kept = []  # so that no address is used again
    rates = 0.5, 0.1, torch.tensor(0.2), torch.tensor([0.3], dtype=torch.float64)
    for lr, steps in zip(rates, ([first], [first, second], [second], [second]), strict=True):
        group["lr"] = lr
        for s in steps:
            kept.append(s.gradient)
            s.gradient = torch.linspace(-1, float(lr), s.region.n)
        check_step(cuda_step, steps)


def test_the_step_is_tried_once_and_a_broken_kernel_is_noticed(monkeypatch):
    device = torch.device("cpu")
    cuda.available.cache_clear()
    assert cuda.available(device) is None
    monkeypatch.setattr(step, "LATER_DIGITS", ((10, 10),))
    assert cuda.available(device) is None
    cuda.available.cache_clear()
    with pytest.warns(UserWarning, match="SFW takes its plain step on cpu"):
        assert "differ from the plain step's by" in cuda.available(device)
    cuda.available.cache_clear()
