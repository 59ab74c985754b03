"""What only a GPU can show: steps that are captured, and that never wait for the device."""

import warnings
from functools import partial

import pytest
import torch
from runs import DIGITS

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, sfw_init
from train_prune import train_step
from utils.captured import CapturedStep

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


def test_captured_steps_train_as_plain_ones():
    device = torch.device("cuda", 0)
    models = [build_model("ResNet18", 10, 3, 32).to(device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    regions = build_constraints(models[0], "k_sparse_constraints", tau=5.0, mode="diameter")
    make_feasible(models[0], regions)
    make_feasible(models[1], regions)
    optimizers = [SFW(model.parameters(), regions, lr=0.1) for model in models]
    plain, captured = (
        partial(train_step, model, optimizer, "fp32")
        for model, optimizer in zip(models, optimizers, strict=True)
    )
    captured = CapturedStep(captured, optimizers[1], 32, device)
    for size, lr in [(32, 0.1)] * 5 + [(8, 0.1)] + [(32, 0.1)] + [(32, 0.01)] * 2 + [(8, 0.01)]:
        images = torch.randn(size, 3, 32, 32, device=device)
        targets = torch.randint(10, (size,), device=device)
        outputs = []
        for step, optimizer in ((plain, optimizers[0]), (captured, optimizers[1])):
            optimizer.param_groups[0]["lr"] = lr
            outputs.append(step(images, targets))
        torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)


def test_a_compiled_run_trains_as_a_plain_one(quick, tmp_path):
    losses = []
    for flags in ((), ("--compile",)):
        folder = tmp_path / str(len(flags))
        status, _, err = quick(
            "train_prune.py", *DIGITS, "--gpu", "0", *flags, "--output_dir", folder
        )
        assert status == 0, err
        (path,) = (folder / "saved_models").glob("*.pt")
        losses.append(torch.load(path, weights_only=True)["metrics"]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
