"""The optimizers: the authors' trajectories, PyTorch's manners, and what never happens."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import sfw_step
from torch import nn

from constraints import KSparsePolytope, LpBall, Unconstrained, build_constraints, make_feasible
from optim import SFW, ProjectedSGD

TRAJECTORIES = [
    f"sfw_{region}_{rescale}_{momentum}.npz"
    for region in ("k_sparse", "l2")
    for rescale in ("None", "diameter", "gradient")
    for momentum in (0.0, 0.9)
]


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def small_sfw(model, **options):
    regions = build_constraints(model, "k_sparse_constraints", tau=5.0, mode="diameter")
    make_feasible(model, regions)
    return SFW(model.parameters(), regions, **options)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def assert_same_weights(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_is_the_authors(name, golden):
    file = np.load(golden(name))
    count, diameter = len(json.loads(str(file["shapes"]))), float(file["diameter"])
    params = [nn.Parameter(torch.tensor(file[f"init{i}"])) for i in range(count)]
    regions = [
        KSparsePolytope(p.numel(), int(file[f"k{i}"]), diameter=diameter)
        if "k_sparse" in name
        else LpBall(p.numel(), 2, diameter=diameter)
        for i, p in enumerate(params)
    ]
    rescale = {"None": None}.get(str(file["rescale"]), str(file["rescale"]))
    lr, momentum = float(file["lr"]), float(file["momentum"])
    optimizer = SFW(params, regions, lr=lr, momentum=momentum, rescale=rescale)
    for t in range(6):
        for i, p in enumerate(params):
            p.grad = torch.tensor(file[f"grad{t}_{i}"])
        optimizer.step()
        for i, p in enumerate(params):
            np.testing.assert_allclose(p.detach(), file[f"param{t}_{i}"], rtol=2e-6, atol=2e-6)


@given(
    seed=st.integers(0, 999),
    k=st.integers(1, 54),
    rescale=st.sampled_from(["gradient", "diameter", None]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    l2=st.booleans(),
)
def test_steps_are_the_plain_algorithm_and_stay_in_the_region(seed, k, rescale, momentum, l2):
    generator = torch.Generator().manual_seed(seed)
    region = LpBall(54, 2, radius=1.0) if l2 else KSparsePolytope(54, k, radius=0.3)
    start = region.shift_inside(torch.randn(2, 3, 3, 3, generator=generator).double())
    p = nn.Parameter(start.clone())
    optimizer = SFW([p], [region], lr=0.7, momentum=momentum, rescale=rescale)
    theta, m = start, None
    for _ in range(5):
        p.grad = torch.randn(p.shape, generator=generator).double().mul(2).round()
        theta, m = sfw_step(theta, p.grad, m, region, lr=0.7, momentum=momentum, rescale=rescale)
        optimizer.step()
        torch.testing.assert_close(p.detach(), theta)
        torch.testing.assert_close(region.euclidean_project(p.detach()), p.detach())


@pytest.mark.parametrize("rescale", ["gradient", "diameter", None])
def test_a_zero_gradient_at_the_origin_leaves_finite_weights(rescale):
    p = nn.Parameter(torch.zeros(6))
    optimizer = SFW([p], [LpBall(6, 2, radius=1.0)], rescale=rescale)
    p.grad = torch.zeros(6)
    optimizer.step()
    assert torch.equal(p, torch.zeros(6))


@pytest.mark.parametrize("optimizer", [SFW, ProjectedSGD])
def test_weight_decay_is_added_to_the_gradient(optimizer):
    region = LpBall(6, 2, radius=2.0)
    start, gradient = torch.full((6,), 0.3), torch.linspace(-1, 1, 6)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    p.grad, q.grad = gradient.clone(), gradient + 0.1 * start
    optimizer([p], [region], lr=0.5, weight_decay=0.1).step()
    optimizer([q], [region], lr=0.5).step()
    torch.testing.assert_close(p, q)
    assert not torch.equal(p, start)


def test_parameters_without_gradient_are_left_alone():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    regions = [LpBall(3, 2, radius=9.0), LpBall(3, 2, radius=1.0)]
    optimizer = SFW([p, q], regions, rescale=None)
    q.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(p, torch.ones(3))
    torch.testing.assert_close(q.detach(), torch.full((3,), -(3**-0.5)))


def test_each_parameter_keeps_its_own_region_in_groups_and_later_groups():
    p, q, r = (nn.Parameter(torch.zeros(n)) for n in (2, 3, 4))
    balls = [LpBall(n, math.inf, radius=float(n)) for n in (2, 3, 4)]
    optimizer = SFW([{"params": [p], "lr": 0.5}, {"params": [q]}], balls[:2], rescale=None)
    optimizer.add_param_group({"params": [r], "constraints": balls[2:]})
    for parameter in (p, q, r):
        parameter.grad = -torch.ones_like(parameter)
    optimizer.step()
    assert [x.tolist() for x in (p, q, r)] == [[1.0] * 2, [3.0] * 3, [4.0] * 4]


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    optimizer = SFW([p], [LpBall(2, 2, radius=1.0)])
    group = {"params": [q], "constraints": [Unconstrained(3)]}
    for _ in range(2):
        with pytest.raises(ValueError, match="no LMO"):
            optimizer.add_param_group(group)
    assert list(group) == ["params", "constraints"] and len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q], "constraints": [LpBall(3, 2, radius=1.0)]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_unconstrained_projected_sgd_is_torch_sgd(momentum):
    a, b = small_network(), small_network()
    regions = build_constraints(a, "unconstraints")
    options = dict(lr=0.1, momentum=momentum, weight_decay=0.01)
    train(a, ProjectedSGD(a.parameters(), regions, **options), 5)
    train(b, torch.optim.SGD(b.parameters(), **options), 5)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", ["k_sparse_constraints", "l2_constraints"])
def test_projected_sgd_stays_in_its_regions(kind):
    model = small_network()
    regions = build_constraints(model, kind, tau=0.5, mode="diameter")
    train(model, ProjectedSGD(model.parameters(), regions, lr=5.0), 5)
    for p, region in zip(model.parameters(), regions, strict=True):
        torch.testing.assert_close(region.euclidean_project(p.detach()), p.detach())


def test_closure_is_called_with_gradients_and_its_loss_returned():
    p = nn.Parameter(torch.ones(3))
    optimizer = SFW([p], [LpBall(3, 2, radius=1.0)])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert not torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_model_and_optimizer_go_on_alike(through):
    model = small_network()
    optimizer = small_sfw(model)
    train(model, optimizer, 3)
    model_copy, optimizer_copy = through((model, optimizer))
    train(model, optimizer, 3, seed=1)
    train(model_copy, optimizer_copy, 3, seed=1)
    assert_same_weights(model, model_copy)


def test_a_state_dict_loaded_in_mid_run_goes_on_bit_for_bit():
    model, other = small_network(), small_network()
    optimizer, resumed = small_sfw(model, lr=0.5), small_sfw(other)
    train(model, optimizer, 3)
    state = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    other.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    train(model, optimizer, 3, seed=1)
    train(other, resumed, 3, seed=1)
    assert_same_weights(model, other)


def test_a_learning_rate_may_be_a_tensor():
    a, b = small_network(), small_network()
    train(a, small_sfw(a, lr=torch.tensor(0.25)), 3)
    train(b, small_sfw(b, lr=0.25), 3)
    assert_same_weights(a, b)
    a, b = small_network(), small_network()
    train(
        a,
        ProjectedSGD(a.parameters(), build_constraints(a, "unconstraints"), torch.tensor(0.25)),
        3,
    )
    train(b, ProjectedSGD(b.parameters(), build_constraints(b, "unconstraints"), 0.25), 3)
    assert_same_weights(a, b)


@pytest.mark.parametrize("optimizer_class", [SFW, ProjectedSGD])
def test_a_learning_rate_may_be_a_tensor_with_one_dimension(optimizer_class):
    p = nn.Parameter(torch.tensor(0.5))
    p.grad = torch.tensor(1.0)
    optimizer_class([p], [LpBall(1, 2, radius=1.0)], lr=torch.tensor([0.25])).step()
    assert p.shape == () and p.item() == pytest.approx(0.25)


def test_pytorch_schedulers_drive_it():
    scheduled, by_hand, constant = (small_network() for _ in range(3))
    optimizers = [small_sfw(model, lr=0.8) for model in (scheduled, by_hand, constant)]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizers[0], 1, gamma=0.5)
    for seed in range(3):
        train(scheduled, optimizers[0], 1, seed)
        scheduler.step()
        optimizers[1].param_groups[0]["lr"] = 0.8 * 0.5**seed
        train(by_hand, optimizers[1], 1, seed)
        train(constant, optimizers[2], 1, seed)
    assert optimizers[0].param_groups[0]["lr"] == 0.1
    assert_same_weights(scheduled, by_hand)
    assert not torch.equal(scheduled[0].weight, constant[0].weight)


def test_channels_last_weights_step_like_contiguous_ones():
    a, b = small_network(), small_network()
    b = b.to(memory_format=torch.channels_last)
    train(a, small_sfw(a), 4)
    train(b, small_sfw(b), 4)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


P, BALL = nn.Parameter(torch.zeros(3)), LpBall(3, 2, radius=1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SFW([P], [BALL], lr=1.5), "lr must be at most 1, not 1.5"),
        (lambda: SFW([P], [BALL], lr=0.0), "lr must be greater than 0, not 0.0"),
        (lambda: SFW([P], [BALL], momentum=1.0), "momentum .* not 1.0"),
        (lambda: SFW([{"params": [P], "lr": 2.0}], [BALL]), "lr must be at most 1, not 2.0"),
        (lambda: SFW([{"params": [P], "constraints": [BALL, BALL]}], []), "2 constraints for 1"),
        (lambda: SFW([P], [BALL], weight_decay=-1.0), "weight_decay .* not -1.0"),
        (lambda: SFW([P], [BALL], rescale="None"), "rescale must be one of .* not 'None'"),
        (lambda: SFW([P], []), "0 constraints for 1 parameters"),
        (lambda: SFW([P], [LpBall(4, 2, radius=1.0)]), 'may have their own, as "constraints"'),
        (lambda: SFW([P], [BALL, BALL]), "2 constraints were given for 1 parameters"),
        (lambda: SFW([P], [LpBall(4, 2, radius=1.0)]), "constraint 0 has 4 entries, its param.* 3"),
        (lambda: SFW([P], [Unconstrained(3)]), "no LMO"),
        (lambda: ProjectedSGD([P], [BALL], lr=-1.0), "lr must be greater than 0, not -1.0"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
