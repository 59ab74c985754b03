"""What only a GPU can show: steps that are captured, and that never wait for the device."""

import warnings

import pytest
import torch

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, sfw_init

pytestmark = pytest.mark.cuda


def test_a_step_can_be_captured_in_a_cuda_graph():
    model, eager = (build_model("ResNet18", 10, 3, 32).cuda() for _ in range(2))
    eager.load_state_dict(model.state_dict())
    regions = build_constraints(model, "k_sparse_constraints", tau=5.0, mode="diameter")
    captured, optimizer = (SFW(m.parameters(), regions, lr=0.1) for m in (model, eager))
    gradients = [torch.randn_like(p) for p in eager.parameters()]
    for m in (model, eager):
        for p, gradient in zip(m.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
    captured.step()  # makes the momentum buffers
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    graph.replay()
    graph.replay()
    for _ in range(3):
        optimizer.step()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", ["k_sparse_constraints", "l2_constraints"])
@pytest.mark.parametrize("rescale", ["gradient", "diameter", None])
def test_an_sfw_step_never_waits_for_the_device(kind, rescale):
    model = build_model("ResNet18", 10, 3, 32).cuda()
    regions = build_constraints(model, kind, tau=5.0, mode="diameter")
    optimizer = SFW(model.parameters(), regions, rescale=rescale)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sfw_init_waits_for_the_device_only_to_report():
    model = build_model("ResNet18", 10, 3, 32).cuda()
    regions = build_constraints(model, "k_sparse_constraints", tau=5.0, mode="diameter")
    make_feasible(model, regions)
    images, targets = torch.randn(3, 8, 3, 32, 32).cuda(), torch.arange(8).cuda()
    halves = [(inputs, targets) for inputs in images]

    def waits(iterations):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                sfw_init(model, halves, regions, iterations=iterations)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    waits(1)  # loads libraries
    assert waits(3) == waits(8) > 0
