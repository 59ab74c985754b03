"""The plain step of many tensors together, against the algorithm for each, and its operations."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import sfw_step
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from constraints import KSparsePolytope, LpBall, SignVertex, build_constraints, tensors
from models import build_model
from optim import SFW
from optim.base import TensorStep
from optim.foreach import plain_step, vertices

RESCALES = ("gradient", "diameter", None)


class Opposite(LpBall):
    """Its `lmo` gives the vertex of largest value, which no short cut of LpBall finds."""

    def lmo(self, g):
        return -super().lmo(g)


REGIONS = {
    "k_sparse": lambda n, k, radius: KSparsePolytope(n, k, radius=radius),
    "l1": lambda n, k, radius: LpBall(n, 1, radius=radius),
    "l2": lambda n, k, radius: LpBall(n, 2, radius=radius),
    "l3": lambda n, k, radius: LpBall(n, 3, radius=radius),
    "linf": lambda n, k, radius: LpBall(n, math.inf, radius=radius),
    "own": lambda n, k, radius: Opposite(n, 2, radius=radius),
}
SHAPES = [(), (1,), (7,), (3, 4), (12,), (2, 3, 2, 2), (5, 3, 3, 3)]


@st.composite
def steps(draw):
    """Steps of a few tensors, whose values are such that sums are exact and many tie."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    groups = [
        {"lr": lr, "weight_decay": decay, "rescale": draw(st.sampled_from(RESCALES))}
        for lr, decay in ((0.5, 0.0), (torch.tensor(0.25), 0.5))
    ]
    drawn = []
    for _ in range(draw(st.integers(1, 6))):
        shape = draw(st.sampled_from(SHAPES))
        n, dtype = math.prod(shape), draw(st.sampled_from([torch.float32, torch.float64]))
        tensors = [(torch.randn(shape, generator=generator) * 4).round() / 4 for _ in range(3)]
        if len(shape) == 4 and draw(st.booleans()):
            tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
        k, radius = draw(st.integers(1, n)), draw(st.sampled_from([0.5, 2.0]))
        region = REGIONS[draw(st.sampled_from(sorted(REGIONS)))](n, k, radius)
        theta, gradient, m = (x.to(dtype) for x in tensors)
        momentum, group = draw(st.sampled_from([0.0, 0.5])), draw(st.sampled_from(groups))
        drawn.append(TensorStep(theta, theta, gradient, m, momentum, region, group))
    return drawn


@settings(max_examples=100)
@given(steps(), st.booleans())
def test_together_tensors_step_as_each_would_alone(drawn, as_on_a_gpu):
    expected = [
        sfw_step(s.theta, s.gradient, s.momentum_buffer, s.region, momentum=s.momentum, **s.group)
        for s in drawn
    ]
    with pytest.MonkeyPatch.context() as patch:
        if as_on_a_gpu:
            patch.setattr(tensors, "is_local", lambda x: False)
        plain_step(drawn)
    for s, (theta, m) in zip(drawn, expected, strict=True):
        torch.testing.assert_close(s.momentum_buffer, m, rtol=0, atol=0)
        torch.testing.assert_close(s.theta, theta)


def test_only_tensors_of_one_shape_and_one_look_of_vertices_are_rows_of_a_matrix(monkeypatch):
    calls, furthest = [], SignVertex.furthest

    def note(self, rows):
        calls.append((self.entries, *rows.shape))
        return furthest(self, rows)

    monkeypatch.setattr(SignVertex, "furthest", note)
    sizes = [(6, 2, 1.0), (6, 2, 3.0), (6, 3, 1.0), (4, 2, 1.0), (6, 2, 0.5)]
    regions = [KSparsePolytope(n, k, radius=radius) for n, k, radius in sizes]
    gradients = [torch.linspace(-1.0, 2.0, n) for n, *_ in sizes]
    v = vertices(regions, gradients)
    assert sorted(calls) == [(2, 1, 4), (2, 3, 6), (3, 1, 6)]
    calls.clear()
    for region, g, point in zip(regions, gradients, v, strict=True):
        assert torch.equal(region.lmo(g), point)


@pytest.mark.parametrize("rescale", [None, "gradient"])
def test_an_iterate_of_millions_of_entries_stays_in_its_ball(rescale):
    """Float32 sums of so many squares lose the fourth digit."""
    p = nn.Parameter(torch.zeros(4_000_000))
    p.grad = torch.rand(4_000_000, generator=torch.Generator().manual_seed(0))
    region = LpBall(4_000_000, 2, radius=1.0)
    optimizer = SFW([p], [region], rescale=rescale, fused=False)
    optimizer.step()
    assert region.gauge(p.detach()) <= 1 + 1e-5
    if rescale:  # ||m|| / ||theta - v||, with theta 0 and v on the surface
        optimizer = SFW([p], [region], lr=1e-6, fused=False)
        p.data.zero_()
        optimizer.step()
        norm = p.grad.double().norm().item()
        assert optimizer.mean_alpha().item() == pytest.approx(1e-6 * norm, rel=2e-6)


@pytest.mark.parametrize("rescale", RESCALES)
def test_a_broken_tensor_leaves_the_others_alone(rescale):
    group = {"lr": 0.5, "weight_decay": 0.0, "rescale": rescale}
    gradients = [torch.tensor([math.nan, 1, 2]), torch.ones(3), torch.tensor([math.inf, 1, 2])]
    region, drawn = KSparsePolytope(3, 2, radius=1.0), []
    for g in gradients:
        theta, m = torch.zeros(2, 3)
        drawn.append(TensorStep(theta, theta, g, m, 0.0, region, group))
    sound = replace(drawn[1], theta=torch.zeros(3), momentum_buffer=torch.zeros(3))
    plain_step(drawn)
    plain_step([sound])
    assert [s.theta.isnan().sum().item() for s in drawn] == [3, 0, 3]
    assert torch.equal(drawn[1].theta, sound.theta)


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["k_sparse_constraints", "l2_constraints"])
@pytest.mark.parametrize("rescale", RESCALES)
def test_a_step_of_resnet18_on_a_gpu_dispatches_at_most_300_operations(kind, rescale):
    """On a fake GPU, where an operation that waited for a value would raise an error."""
    with torch.device("meta"):
        model = build_model("ResNet18", 10, 3, 32)
    regions = build_constraints(model, kind, tau=5.0, mode="diameter")
    with FakeTensorMode():
        params = []
        for p in model.parameters():
            layout = torch.channels_last if p.dim() == 4 else torch.contiguous_format
            fake = torch.empty(p.shape, device="cuda").to(memory_format=layout)
            params.append(nn.Parameter(fake))
            params[-1].grad = torch.empty_like(fake)
        optimizer = SFW(params, regions, rescale=rescale, weight_decay=0.1)
        optimizer.step()
        with Operations() as operations:
            optimizer.step()
    del operations.counts["prim.device.default"]
    assert operations.counts.total() <= 300, operations.counts
