"""Cheap second derivatives beside PyTorch's own."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from constraints import build_constraints
from optim import sfw_init
from optim.double_backward import CheapDoubleBackward

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def derivatives(network, x, cheap, learned=None):
    """Loss, gradient, and inner products of the parameters with the gradient of <gradient, u>."""
    generator = torch.Generator().manual_seed(1)
    learned = list(network.parameters()) if learned is None else learned
    with CheapDoubleBackward(learned) if cheap else contextlib.nullcontext():
        y = network(x)
    loss = (y.float().sin() if y.dtype == torch.bfloat16 else y.sin()).mean()
    first = torch.autograd.grad(loss, learned, create_graph=True)
    u = [torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g) for g in first]
    second = torch.autograd.grad(first, learned, u)
    return loss, first, [(s * p).sum() for s, p in zip(second, learned, strict=True)]


def assert_same(network, x, learned=None, **tolerances):
    expected = derivatives(network, x, False, learned)
    torch.testing.assert_close(derivatives(network, x, True, learned), expected, **tolerances)


def uses_cheap(network, x):
    """Whether the network's graph has nodes that are not PyTorch's."""
    with CheapDoubleBackward(list(network.parameters())):
        node = network(x).grad_fn
    return type(node).__name__ in {"ConvolutionBackward", "BatchNormBackward"}


@st.composite
def networks(draw):
    """Two convolutions, each perhaps with BatchNorm, and an input."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    dimensions = draw(st.integers(1, 3))
    layers, channels = [], draw(st.sampled_from([2, 4]))
    side = draw(st.integers(9, 10))
    x = torch.randn(draw(st.integers(2, 4)), channels, *[side] * dimensions, dtype=torch.float64)
    for outputs in (draw(st.sampled_from([2, 4])), 4):
        settings = dict(
            kernel_size=draw(st.integers(1, 3)), stride=draw(st.integers(1, 2)),
            padding=draw(st.integers(1, 2)), dilation=draw(st.integers(1, 2)),
            groups=draw(st.sampled_from([1, 2])), bias=draw(st.booleans()),
        )  # fmt: skip
        layers += [CONVOLUTIONS[dimensions](channels, outputs, **settings), nn.Softplus()]
        if draw(st.booleans()):
            norm = NORMS[dimensions](outputs, eps=0.1)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            layers.insert(-1, norm)
        channels = outputs
    network = nn.Sequential(*layers).double()
    if dimensions == 2 and draw(st.booleans()):
        network, x = (y.to(memory_format=torch.channels_last) for y in (network, x))
    return network, x.requires_grad_(draw(st.booleans()))


@given(networks())
def test_derivatives_are_pytorchs(case):
    assert_same(*case)


@given(networks())
def test_some_weights_can_be_left_to_pytorch(case):
    network, x = case
    for p in list(network.parameters())[::3]:
        p.requires_grad_(False)
    learned = [p for p in network.parameters() if p.requires_grad]
    assert_same(network, x, learned)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_derivatives_in_float32(device, channels_last):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Softplus(), nn.Conv2d(16, 8, 3)
    ).to(device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    assert_same(network, torch.randn(16, 3, 12, 12, device=device), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_gives_what_it_gives_pytorch(device):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Softplus(), nn.Conv2d(16, 8, 3)
    ).to(device)
    with torch.autocast(device, torch.bfloat16):
        assert_same(network, torch.randn(64, 3, 12, 12, device=device), rtol=0.05, atol=0.01)


def test_batch_norm_of_rows_is_taken():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.BatchNorm1d(4)).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    assert uses_cheap(network, x)
    assert_same(network, x)


def test_running_statistics_advance_as_ever():
    torch.manual_seed(0)
    x, (ours, theirs) = torch.randn(8, 3, 4, 4), (nn.BatchNorm2d(3) for _ in range(2))
    with CheapDoubleBackward(list(ours.parameters())):
        ours(x)
    theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 5, 5)),
        (nn.Conv2d(3, 4, 3), (3, 5, 5)),
        (nn.BatchNorm2d(3).eval(), (2, 3, 5, 5)),
    ],
)
def test_what_cannot_be_cheap_is_pytorchs(layer, shape):
    x = torch.randn(shape)
    assert not uses_cheap(layer, x)
    assert_same(layer, x)


def broken_norm():
    norm = nn.BatchNorm2d(4)
    norm.running_mean = torch.zeros(2)
    return norm


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (broken_norm(), torch.ones(2, 4, 3, 3)),
        (nn.BatchNorm2d(3), torch.ones(2, 4, 3, 3)),
        (nn.BatchNorm1d(3), torch.ones(1, 3)),
        (nn.BatchNorm2d(3, eps=0), torch.ones(2, 3, 3, 3)),
        (nn.Conv2d(3, 4, 3), torch.ones(2, 3, 5, 5, dtype=torch.float64)),
    ],
)
def test_what_pytorch_refuses_is_refused_in_its_words(layer, x):
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        layer(x)
    with CheapDoubleBackward(list(layer.parameters())), pytest.raises(theirs.type) as ours:
        layer(x)
    assert str(ours.value) == str(theirs.value)


def test_autocast_leaves_float64_alone():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(layer, x)


def test_layers_under_vmap_are_pytorchs():
    class PerImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.vmap(self.layer)(x.unsqueeze(1))

    assert_same(PerImage(), torch.randn(2, 3, 5, 5))


def test_weights_can_be_used_twice_and_activations_work_in_place():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

        def forward(self, x):
            return F.celu_(self.norm(F.celu_(self.layer(F.celu_(self.layer(x))))))

    torch.manual_seed(0)
    assert_same(Twice().double(), torch.randn(2, 3, 5, 5, dtype=torch.float64))


class Energy(nn.Module):
    """Puts out how a network's sum grows with the input."""

    def __init__(self, *layers):
        super().__init__()
        self.network = nn.Sequential(*layers)

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.network(x).sum(), x, create_graph=True)[0]


def test_networks_that_differentiate_can_be_differentiated():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 2, bias=False), nn.Softplus()
    assert_same(Energy(*layers).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64))


def test_a_third_derivative_of_batch_norm_is_refused():
    network = Energy(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softplus())
    with pytest.raises(RuntimeError, match="no third derivative of BatchNorm"):
        derivatives(network, torch.randn(2, 3, 5, 5), True)


class Tanh(nn.Module):
    def forward(self, raw):
        return raw.tanh()


def test_weights_that_are_computed_from_parameters_are_pytorchs():
    """Their gradients are needed whole, not only along them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2)).double()
    nn.utils.parametrize.register_parametrization(network[1], "weight", Tanh())
    assert_same(network, torch.randn(2, 3, 5, 5, dtype=torch.float64))


class WeightGradients(TorchDispatchMode):
    """Counts the convolutions' gradients by their weights."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.count += args[-1][1]
        return function(*args, **(kwargs or {}))


def test_second_derivatives_cost_no_gradient_by_a_weight():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5, requires_grad=True)
    learned = list(layer.parameters())
    with CheapDoubleBackward(learned):
        loss = layer(x).square().sum()
    with WeightGradients() as first:
        gradients = torch.autograd.grad(loss, learned, create_graph=True)
    with WeightGradients() as second:
        torch.autograd.grad(gradients, learned, [torch.ones_like(g) for g in gradients])
    assert (first.count, second.count) == (1, 0)


def test_an_iteration_of_sfw_init_computes_each_gradient_by_weights_twice():
    """And once more that of the first convolution, whose input has no gradient to save it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    regions = build_constraints(model, "k_sparse_constraints", tau=15.0, mode="diameter")
    batches = [(torch.randn(2, 3, 5, 5), torch.arange(2))]
    with WeightGradients() as gradients:
        sfw_init(model, batches, regions, iterations=1)
    assert gradients.count == 5


def test_a_weight_of_zeros_has_finite_derivatives():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2))
    nn.init.zeros_(network[1].weight)
    assert_same(network, torch.randn(2, 3, 5, 5))


def test_keyword_arguments_are_understood():
    x, w = torch.randn(2, 3, 5), torch.randn(4, 3, 2, requires_grad=True)
    with CheapDoubleBackward([w]):
        y = F.conv1d(input=x, weight=w, stride=2)
    assert type(y.grad_fn).__name__ == "ConvolutionBackward"
    torch.testing.assert_close(y, F.conv1d(x, w, stride=2))
