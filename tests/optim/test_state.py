"""State dicts: what they hold, what they refuse, and how training goes on from them."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from constraints import KSparsePolytope, LpBall, Unconstrained
from optim import SFW, ProjectedSGD

OPTIMIZERS = [SFW, ProjectedSGD]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))


def regions_of(model, radius=0.5):
    return [KSparsePolytope(p.numel(), 1, radius=radius) for p in model.parameters()]


def built(optimizer_class, **options):
    model = network()
    optimizer = optimizer_class(model.parameters(), regions_of(model), **{"lr": 0.1} | options)
    return model, optimizer


def train(model, optimizer, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 8, generator=generator).to(next(model.parameters()))
        model(x).square().sum().backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def saved_and_read(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_a_state_dict_describes_the_regions_in_plain_types(optimizer_class):
    p, q = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(4))
    groups = [{"params": [p]}, {"params": [q]}]
    optimizer = optimizer_class(
        groups, [KSparsePolytope(6, 2, radius=1), LpBall(4, math.inf, diameter=8)]
    )
    state = saved_and_read(optimizer.state_dict())
    assert [group["constraints"] for group in state["param_groups"]] == [
        [{"kind": "KSparsePolytope", "n": 6, "radius": 1.0, "k": 2}],
        [{"kind": "LpBall", "n": 4, "radius": 2.0, "p": math.inf}],
    ]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["constraints"][0].lmo(torch.ones(6)).norm() > 0


OTHERS = {
    "kind": LpBall(10, 2, radius=0.5),
    "k": KSparsePolytope(10, 3, radius=0.5),
    "radius": KSparsePolytope(10, 2, radius=0.501),
    "n": KSparsePolytope(11, 2, radius=0.5),
    "unbounded": Unconstrained(10),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_other_regions_is_refused_with_nothing_loaded(other):
    def optimizer_of(region):
        p = nn.Parameter(torch.zeros(region.n))
        p.grad = torch.ones(region.n)
        optimizer = ProjectedSGD([nn.Parameter(torch.zeros(3)), p], [BALL, region], lr=0.1)
        optimizer.step()
        return optimizer, p

    ours, p = optimizer_of(KSparsePolytope(10, 2, radius=0.5))
    theirs, _ = optimizer_of(OTHERS[other])
    theirs.param_groups[0]["lr"] = 7.0
    m = ours.state[p]["momentum_buffer"].clone()
    with pytest.raises(ValueError, match=r"constraint 1 of group 0 is .* there and .* here"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.1 and torch.equal(ours.state[p]["momentum_buffer"], m)


BALL = LpBall(3, 2, radius=1.0)


@pytest.mark.parametrize("other", ["ProjectedSGD", "SGD"])
def test_a_state_of_another_optimizer_is_refused_by_name(other):
    model, optimizer = built(SFW)
    if other == "SGD":
        theirs, name = torch.optim.SGD(model.parameters(), momentum=0.9), "dampening, .* nesterov"
    else:
        theirs, name = ProjectedSGD(model.parameters(), regions_of(model)), "ProjectedSGD"
    train(model, theirs)
    with pytest.raises(ValueError, match=f"not of SFW but of .*{name}"):
        optimizer.load_state_dict(theirs.state_dict())
    assert not optimizer.state


def test_a_state_of_reordered_parameters_is_refused_where_names_tell():
    """Both have the same sizes."""
    model = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    named = [(name, layer.weight) for name, layer in zip("ab", model, strict=True)]
    regions = [KSparsePolytope(9, 1, radius=0.5)] * 2
    state = SFW(named, regions).state_dict()
    with pytest.raises(ValueError, match="parameter 0 of group 0 is 'a' there and 'b' here"):
        SFW(named[::-1], regions).load_state_dict(state)
    SFW(named, regions).load_state_dict(state)


def test_the_same_regions_rounded_in_another_way_are_accepted():
    p = nn.Parameter(torch.zeros(3))
    states = [SFW([p], [LpBall(3, 2, radius=r)]).state_dict() for r in (0.1, 0.1 * (1 + 1e-7))]
    SFW([p], [LpBall(3, 2, radius=0.1)]).load_state_dict(states[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_a_state_of_any_type_goes_on_bit_for_bit(optimizer_class, dtype):
    """PyTorch rounds loaded state to the parameters' type, and with it what they lack."""
    model, optimizer = built(optimizer_class, lr=1e-3)
    model.to(dtype)
    train(model, optimizer)
    saved = saved_and_read((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 20, seed=1)
    other, resumed = built(optimizer_class)
    other.to(dtype).load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(other, resumed, 20, seed=1)
    assert torch.equal(weights(model), weights(other))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name, value in optimizer.state[p].items():
            assert resumed.state[q][name] is value or torch.equal(resumed.state[q][name], value)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_a_fresh_optimizers_state_changes_nothing(optimizer_class, fused, tensor_lr, dtype):
    """torch.distributed.checkpoint takes a step with learning rate 0 and gradients 0 for it."""
    outcomes = []
    for read in (False, True):
        options = {"fused": fused} if optimizer_class is SFW else {}
        lr = torch.tensor(0.1) if tensor_lr else 0.1
        model, optimizer = built(optimizer_class, lr=lr, weight_decay=0.1, **options)
        model.to(dtype)  # these weights are outside their regions
        before = weights(model)
        if read:
            state = get_optimizer_state_dict(model, optimizer)
            assert state["state"]["0.weight"]["step"] == 0
            assert torch.equal(weights(model), before)
        train(model, optimizer)
        outcomes.append(weights(model))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_a_distributed_checkpoint_goes_on_bit_for_bit(optimizer_class, flat):
    model, optimizer = built(optimizer_class)
    train(model, optimizer)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, resumed = built(optimizer_class)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, saved, options=options)
    train(model, optimizer, seed=1)
    train(other, resumed, seed=1)
    assert torch.equal(weights(model), weights(other))


def test_a_first_step_is_the_first_with_a_learning_rate():
    """As in a warm-up from 0."""
    warmed, plain = built(SFW), built(SFW)
    warmed[1].param_groups[0]["lr"] = 0.0
    train(*warmed, steps=2, seed=5)
    warmed[1].param_groups[0]["lr"] = 0.1
    for pair in (warmed, plain):
        train(*pair, steps=2)
    assert torch.equal(weights(warmed[0]), weights(plain[0]))


def test_a_later_step_without_learning_rate_still_counts():
    model, optimizer = built(SFW)
    train(model, optimizer, steps=1)
    before, buffer = weights(model), optimizer.state[model[0].weight]["momentum_buffer"].clone()
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, steps=1, seed=1)
    assert torch.equal(weights(model), before)
    assert not torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], buffer)


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (ValueError, {"constraints": []}),
        (ValueError, {"constraints": [BALL], "lr": -1.0}),
        (TypeError, {"constraints": [BALL], "lr": "fast"}),
        (AttributeError, {"constraints": ["ball"]}),
        (TypeError, {"constraints": 3}),
    ],
)
def test_whatever_goes_wrong_a_refused_group_is_not_there(optimizer_class, error, wrong):
    model, optimizer = built(optimizer_class)
    p = nn.Parameter(torch.zeros(3))
    with pytest.raises(error):
        optimizer.add_param_group({"params": [p], **wrong})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer)
    optimizer.add_param_group({"params": [p], "constraints": [BALL]})
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.norm() > 0


def test_hooks_of_others_see_and_change_what_is_loaded():
    model, optimizer = built(SFW)
    model.bfloat16()
    train(model, optimizer)
    state = optimizer.state_dict()

    def halve(_, loaded):
        groups = [{**group, "lr": group["lr"] / 2} for group in loaded["param_groups"]]
        values = {
            key: {**v, "momentum_buffer": v["momentum_buffer"] / 2}
            for key, v in loaded["state"].items()
        }
        return {"state": values, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.load_state_dict(state)
    first = optimizer.state[model[0].weight]["momentum_buffer"]
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert torch.equal(first, state["state"][0]["momentum_buffer"] / 2)
