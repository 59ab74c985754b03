"""What only a GPU can show: steps that are captured, and that never wait for the device."""

import warnings
from functools import partial

import pytest
import torch

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, sfw_init
from train_prune import train_step
from utils.train.cuda_graph import CapturedStep

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


def test_captured_steps_train_as_plain_ones(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    device = torch.device("cuda", 0)
    models = [build_model("ResNet18", 10, 3, 32).to(device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    # With so large a diameter the outputs tell one batch from another.
    regions = build_constraints(models[0], "k_sparse_constraints", tau=300.0, mode="diameter")
    steps, optimizers = [], []
    for model in models:
        make_feasible(model, regions)
        optimizers.append(SFW(model.parameters(), regions, lr=0.1))
        steps.append(partial(train_step, model, optimizers[-1], "fp32"))
    steps[1] = CapturedStep(steps[1], optimizers[1], 32)
    former = None
    for size, lr in [(32, 0.1)] * 5 + [(8, 0.1), (32, 0.1)] + [(32, 0.01)] * 2 + [(8, 0.01)]:
        batch = torch.randn(size, 3, 32, 32, device=device), torch.arange(size, device=device) % 10
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr
        plain, captured = (step(*batch)[1].clone() for step in steps)
        torch.testing.assert_close(captured, plain, rtol=0, atol=1e-2)
        if former is not None and former.shape == plain.shape:
            assert (former - plain).abs().max() > 5e-2
        former = plain
    for name, values in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], values, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_is_captured_and_trains_as_a_plain_one(
    precision, quick, write_npz, tmp_path, monkeypatch
):
    captures = []
    capture = CapturedStep._capture
    monkeypatch.setattr(
        CapturedStep, "_capture", lambda self, *batch: captures.append(1) or capture(self, *batch)
    )
    write_npz(tmp_path, "cifar10")
    common = ("--data", "cifar10", "--data_dir", tmp_path, "--arch", "VGG16", "--gpu", "0",
              "--train_batchsize", "12", "--epoch_num", "3", "--precision", precision)  # fmt: skip
    losses = []
    for flags in ((), ("--compile",)):
        folder = tmp_path / str(len(flags))
        status, _, err = quick("train_prune.py", *common, *flags, "--output_dir", folder)
        assert status == 0, err
        (path,) = (folder / "saved_models").glob("*.pt")
        losses.append(torch.load(path, weights_only=True)["metrics"]["train_loss"])
        assert bool(captures) == ("--compile" in flags)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.05)
