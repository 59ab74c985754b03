"""Steps at the edges: gradients and learning rates out of range, dead layers, compiled steps."""

import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from constraints import KSparsePolytope, LpBall, Unconstrained
from optim import SFW, ProjectedSGD

OPTIMIZERS = [SFW, ProjectedSGD]


def polytope(p):
    return KSparsePolytope(p.numel(), max(1, p.numel() // 10), radius=1.0)


class TestGradientsThatAreNotFinite:
    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("rescale", ["gradient", "diameter", None])
    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    def test_sfw_shows_them_as_nan(self, fused, rescale, value):
        p, q = nn.Parameter(torch.zeros(100)), nn.Parameter(torch.zeros(100))
        optimizer = SFW([p, q], [polytope(p), polytope(q)], lr=0.1, rescale=rescale, fused=fused)
        p.grad, q.grad = torch.ones(100), torch.ones(100)
        p.grad[17] = value
        optimizer.step()
        assert p.isnan().all() and q.isfinite().all() and q.norm() > 0

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize(
        "region",
        [
            KSparsePolytope(100, 9, radius=0.1),
            Unconstrained(100),
            *(LpBall(100, p, radius=0.1) for p in (1, 2, 3, math.inf)),
        ],
        ids=repr,
    )
    def test_so_do_all_regions(self, region, value):
        for optimizer_class in OPTIMIZERS[isinstance(region, Unconstrained) :]:
            p = nn.Parameter(torch.zeros(100))
            p.grad = torch.ones(100)
            p.grad[17] = value
            optimizer_class([p], [region], lr=0.1).step()
            assert p.isnan().all()

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_gradient_scaler_skips_them(self, optimizer_class, value):
        p = nn.Parameter(torch.zeros(100))
        optimizer = optimizer_class([p], [polytope(p)], lr=0.1)
        p.grad = torch.ones(100)
        optimizer.step()
        before, m = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
        scaler = torch.amp.GradScaler("cpu")
        p.grad = None
        scaler.scale((p * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(p, before) and optimizer.state[p]["step"] == 1
        assert torch.equal(optimizer.state[p]["momentum_buffer"], m)
        p.grad = None
        scaler.scale((p - 1).square().sum()).backward()
        scaler.step(optimizer)
        assert p.isfinite().all() and not torch.equal(p, before)

    def test_no_step_waits_for_the_device(self):
        """On a fake GPU, where reading a value raises an error."""
        with FakeTensorMode():
            for optimizer_class in OPTIMIZERS:
                for lr in (0.1, torch.tensor(0.1, device="cuda")):
                    p = nn.Parameter(torch.empty(30, device="cuda"))
                    optimizer = optimizer_class([p], [polytope(p)], lr=0.1, weight_decay=0.1)
                    optimizer.param_groups[0]["lr"] = lr
                    for _ in range(2):
                        p.grad = torch.empty(30, device="cuda")
                        optimizer.step()


class TestNumbersOfAStep:
    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("rescale", ["gradient", "diameter", None])
    @pytest.mark.parametrize("tensor", [False, True])
    @pytest.mark.parametrize(("lr", "alpha"), [(-0.5, 0.0), (1e6, 1.0)])
    def test_alpha_is_clipped_to_0_and_1(self, fused, rescale, tensor, lr, alpha):
        """A scheduler may set any learning rate."""
        region = KSparsePolytope(10, 3, radius=1.0)
        start = torch.linspace(-0.2, 0.2, 10)
        p = nn.Parameter(start.clone())
        p.grad = torch.arange(10.0)
        optimizer = SFW([p], [region], rescale=rescale, fused=fused)
        optimizer.param_groups[0]["lr"] = torch.tensor(lr) if tensor else lr
        optimizer.step()
        assert torch.equal(p, region.lmo(p.grad) if alpha else start)

    @pytest.mark.parametrize("rescale", ["diameter", None])
    def test_a_dead_layer_stays_in_an_l2_ball(self, rescale):
        """||m|| decays through all of float32's small numbers once the gradient is 0."""
        region = LpBall(10, 2, radius=1.0)
        p = nn.Parameter(torch.zeros(10))
        p.grad = torch.randn(10, generator=torch.Generator().manual_seed(0))
        optimizer = SFW([p], [region], lr=0.1, rescale=rescale)
        optimizer.step()
        p.grad = torch.zeros(10)
        for _ in range(1200):
            optimizer.step()
            assert p.norm() <= 1.0001

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_maximize_descends_the_negative(self, optimizer_class, decay):
        p, q = (nn.Parameter(torch.linspace(-0.2, 0.2, 30)) for _ in range(2))
        a = optimizer_class([p], [polytope(p)], lr=0.1, maximize=True, weight_decay=decay)
        b = optimizer_class([q], [polytope(q)], lr=0.1, weight_decay=decay)
        for seed in range(3):
            p.grad = torch.randn(30, generator=torch.Generator().manual_seed(seed))
            q.grad = -p.grad
            a.step()
            b.step()
        assert torch.equal(p, q)


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_a_nan_does_not_stay_in_a_buffer_without_momentum(optimizer_class):
    p = nn.Parameter(torch.zeros(30))
    optimizer = optimizer_class([p], [polytope(p)], lr=0.1, momentum=0.0)
    for gradient in (1.0, math.nan, 1.0):
        p.data.zero_()
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    assert p.isfinite().all()


class TestCompilation:
    def parameters(self):
        """Two parameters alike in all but their regions, which a mix-up would exchange."""
        params = [nn.Parameter(torch.linspace(-0.1, 0.1, 64)) for _ in range(4)]
        regions = [KSparsePolytope(64, k, radius=r) for k, r in ((2, 0.1), (5, 3.0), (9, 0.5))]
        return params, [*regions, LpBall(64, 2, radius=7.0)]

    @pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
    def test_a_compiled_step_is_the_eager_one(self, optimizer_class):
        """No part of it is compiled."""
        outcomes, counter = [], CompileCounter()
        for compiled in (False, True):
            params, regions = self.parameters()
            optimizer = optimizer_class(params, regions, lr=0.5)
            step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
            for seed in range(4):
                generator = torch.Generator().manual_seed(seed)
                for p in params:
                    p.grad = torch.randn(64, generator=generator)
                step()
            outcomes.append(torch.stack([p.detach() for p in params]))
        assert torch.equal(*outcomes)
        assert counter.frame_count == 0

    def test_a_compiled_training_step_is_the_eager_one(self):
        outcomes = []
        for compiled in (False, True):
            torch._dynamo.reset()
            params, regions = self.parameters()
            optimizer = SFW(params, regions, lr=0.5)

            def train_step(x, params=params, optimizer=optimizer):
                optimizer.zero_grad()
                loss = sum(((p - x) ** 4).sum() for p in params)
                loss.backward()
                optimizer.step()
                return loss

            step = torch.compile(train_step, backend="eager") if compiled else train_step
            for seed in range(4):
                step(torch.randn(64, generator=torch.Generator().manual_seed(seed)))
            outcomes.append(torch.stack([p.detach() for p in params]))
        assert torch.equal(*outcomes)
