"""Parameters of all shapes and types, and state and weights that are swapped under a step."""

import math

import pytest
import torch
from torch import nn

from constraints import KSparsePolytope, LpBall, build_constraints, make_feasible
from optim import SFW, ProjectedSGD

OPTIMIZERS = [SFW, ProjectedSGD]
HALF = [torch.bfloat16, torch.float16]


def polytope(p):
    return KSparsePolytope(p.numel(), max(1, p.numel() // 10), radius=1.0)


def stepped(optimizer_class, p, steps=1, seed=0, **options):
    """An optimizer of `p` that has taken `steps` steps with random gradients."""
    optimizer = optimizer_class([p], [polytope(p)], lr=0.1, **options)
    take_steps(optimizer, p, steps, seed)
    return optimizer


def take_steps(optimizer, p, steps=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


class TestShapesThatDiffer:
    """Compiled loops over such arrays would read and write outside them."""

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize(
        ("saved", "own"),
        [((100, 200), (200, 100)), ((300,), (20, 15))],
    )
    def test_the_state_of_another_shape_is_refused(self, optimizer_class, saved, own):
        p, q = nn.Parameter(torch.zeros(saved)), nn.Parameter(torch.zeros(own))
        state = stepped(optimizer_class, p).state_dict()
        optimizer = optimizer_class([q], [polytope(q)], lr=0.1)
        optimizer.load_state_dict(state)
        with pytest.raises(RuntimeError, match="they must agree"):
            take_steps(optimizer, q)
        assert torch.equal(q, torch.zeros(own))

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize("size", [1, 10_000, 30_000])
    def test_a_parameter_of_a_new_size_is_refused(self, optimizer_class, size):
        p = nn.Parameter(torch.zeros(20_000))
        optimizer = stepped(optimizer_class, p)
        p.grad = None
        p.data = torch.zeros(size)
        for state in (optimizer.state[p], {}):  # the second time the region alone is in the way
            optimizer.state[p] = state
            with pytest.raises(RuntimeError, match="20000 entries: they must agree"):
                take_steps(optimizer, p)
            assert torch.equal(p, torch.zeros(size))

    def test_a_gradient_of_another_size_than_the_shrunk_parameter_is_refused(self):
        p = nn.Parameter(torch.zeros(20_000))
        optimizer = stepped(SFW, p)
        p.data = torch.zeros(10)
        with pytest.raises(RuntimeError, match=r"shape \(10,\) has a gradient of shape \(20000,\)"):
            optimizer.step()

    def test_nothing_moves_if_one_parameter_is_refused(self):
        p, q = nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(40))
        optimizer = SFW([p, q], [polytope(p), polytope(q)])
        p.grad, q.grad = torch.ones(30), torch.ones(40)
        q.data = torch.zeros(50)
        with pytest.raises(RuntimeError, match="they must agree"):
            optimizer.step()
        assert torch.equal(p, torch.zeros(30)) and optimizer.state[p]["step"] == 0


class TestTypes:
    @pytest.mark.parametrize(
        ("dtype", "region", "fused"),
        [
            (torch.bfloat16, KSparsePolytope(4, 2, radius=1.0), True),
            (torch.float16, LpBall(4, 2, radius=1.0), False),
        ],
    )
    def test_small_steps_in_half_precision_stay_in_the_region(self, dtype, region, fused):
        """(1 - alpha) theta is rounded to theta there, but not in the float32 copy."""
        p = nn.Parameter(region.lmo(torch.tensor([-1.0, -2.0, -3.0, -0.5])).to(dtype))
        optimizer = SFW([p], [region], lr=1e-3, rescale="diameter", fused=fused)
        generator = torch.Generator().manual_seed(0)
        start = p.detach().clone()
        for _ in range(2000):
            p.grad = (torch.randn(4, generator=generator) - 0.1).to(dtype)
            optimizer.step()
        gauge = (
            p.detach().double().norm(2)
            if isinstance(region, LpBall)
            else max(p.detach().double().norm(1) / region.k, p.detach().double().norm(math.inf))
        )
        assert gauge <= 1 + 2 * torch.finfo(dtype).eps
        assert not torch.equal(p, start)
        assert p.dtype == dtype

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision_is_float32_rounded(self, optimizer_class, dtype):
        start = torch.linspace(-0.3, 0.3, 50).to(dtype)
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.float())
        a, b = (optimizer_class([x], [polytope(x)], lr=1e-3, weight_decay=0.1) for x in (p, q))
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            p.grad = torch.randn(50, generator=generator).to(dtype)
            q.grad = p.grad.float()
            a.step()
            b.step()
        assert torch.equal(p, q.to(dtype))
        assert a.state[p]["momentum_buffer"].dtype == torch.float32

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    def test_weights_that_something_else_has_changed_count(self, optimizer_class):
        p = nn.Parameter(torch.linspace(-0.3, 0.3, 50).bfloat16())
        optimizer = stepped(optimizer_class, p, 3)
        with torch.no_grad():
            p[:25] = 0.0
        p.grad = torch.zeros_like(p)
        optimizer.state[p]["momentum_buffer"].zero_()
        optimizer.step()
        assert p[:25].count_nonzero() == 0 and p[25:].count_nonzero() > 0

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize(
        ("start", "convert"),
        [(torch.float32, "half"), (torch.float32, "double"), (torch.bfloat16, "float")],
    )
    def test_a_model_may_change_its_type_between_steps(self, optimizer_class, convert, start):
        model = nn.Linear(6, 5).to(start)
        regions = build_constraints(model, "k_sparse_constraints", tau=1.0, mode="radius")
        make_feasible(model, regions)
        optimizer = optimizer_class(model.parameters(), regions, lr=0.1)
        for change in (lambda: None, getattr(model, convert), model.float):
            change()
            before = [p.detach().clone() for p in model.parameters()]
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            for p, former in zip(model.parameters(), before, strict=True):
                assert p.isfinite().all() and p.dtype == former.dtype and not torch.equal(p, former)

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize(
        ("dtype", "grad_dtype"),
        [
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.float32, torch.float64),
            (torch.float64, torch.float32),
        ],
    )
    def test_a_gradient_may_have_a_type_of_its_own(self, optimizer_class, dtype, grad_dtype):
        p, q = (nn.Parameter(torch.zeros(30, dtype=dtype)) for _ in range(2))
        p.grad_dtype = grad_dtype
        for x in (p, q):
            x.grad = torch.arange(30.0).to(x.grad_dtype)
            optimizer_class([x], [polytope(x)], lr=0.1).step()
        assert torch.equal(p, q) and p.norm() > 0

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    def test_complex_parameters_are_refused(self, optimizer_class):
        p = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        with pytest.raises(ValueError, match=r"parameter 0 is torch.complex64: .* real numbers"):
            optimizer_class([p], [LpBall(3, 2, radius=1.0)])

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    def test_sparse_gradients_are_refused(self, optimizer_class):
        embedding = nn.Embedding(5, 2, sparse=True)
        optimizer = optimizer_class(embedding.parameters(), [LpBall(10, 2, radius=1.0)])
        embedding(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match=r"needs dense gradients, not torch.sparse_coo"):
            optimizer.step()

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    def test_zero_size_parameters_are_left_alone(self, optimizer_class):
        p, q = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(6))
        optimizer = optimizer_class([p, q], [KSparsePolytope(0, 0, radius=1.0), polytope(q)])
        for _ in range(2):
            p.grad, q.grad = torch.zeros(0, 3), torch.ones(6)
            optimizer.step()
        assert p.shape == (0, 3) and q.norm() > 0
        assert optimizer.state_dict()["state"].keys() == {0, 1}
