"""Steps that are captured in a CUDA graph train as plain ones do."""

from functools import partial

import pytest
import torch

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, ProjectedSGD
from train_prune import train_step
from utils.compute.device import placed
from utils.datasets.augment import crop_and_flip
from utils.datasets.batches import Batches
from utils.train.captured_step import CapturedStep

pytestmark = pytest.mark.cuda


def batches_of(images, size, augment=None):
    labels, channels = torch.arange(len(images), device=images.device) % 10, images.shape[1]
    generator = torch.Generator(images.device).manual_seed(0)
    return Batches(images, labels, size, (0.5,) * channels, (0.25,) * channels, augment, generator)


@pytest.fixture
def captured_steps(monkeypatch):
    """What CapturedStep captures: one entry for each graph that was recorded."""
    graphs, capture = [], CapturedStep._capture

    def noted(step, inputs, targets):
        done = capture(step, inputs, targets)
        graphs.append(step.graph)
        return done

    monkeypatch.setattr(CapturedStep, "_capture", noted)
    return graphs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["SFW", "SGD"])
def test_captured_steps_train_as_plain_ones(precision, kind, monkeypatch, captured_steps):
    """20 replays and more of changing batches and rates; the results of each step are compared."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    device = torch.device("cuda", 0)
    # With so large a diameter the losses tell one batch from another.
    losses = []
    for captures in (False, True):
        torch.manual_seed(0)
        model = placed(build_model("ResNet18", 10, 3, 32), device).train()
        regions = build_constraints(model, "k_sparse_constraints", tau=300.0, mode="diameter")
        make_feasible(model, regions)
        optimizer = (SFW if kind == "SFW" else ProjectedSGD)(model.parameters(), regions, lr=0.1)
        images = torch.randint(256, (32 * 12 + 8, 3, 32, 32), device=device, dtype=torch.uint8)
        batches = batches_of(images, 32, crop_and_flip)
        step = partial(train_step, model, model, optimizer, precision)
        if captures:
            step = CapturedStep(step, optimizer, 32, device)
        results = [step(*batch, 0.1 / (epoch + 1)) for epoch in range(2) for batch in batches]
        losses.append(torch.stack(results)[:, 0].tolist())
    assert len(captured_steps) == 1 and captured_steps[0] is not None
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    assert max(losses[0]) - min(losses[0]) > 0.1


@pytest.mark.parametrize("flags", ["", "--compile", "--sfw_init 1 --sfw_init_iters 3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_run_is_captured_and_resumes_within_an_epoch(
    flags, precision, quick, write_npz, tmp_path, stop_within, captured_steps
):
    write_npz(tmp_path, "cifar10")
    text = f"--data cifar10 --arch VGG16 --gpu 0 --train_batchsize 12 --epoch_num 3 {flags}"
    common = (*text.split(), "--precision", precision, "--data_dir", tmp_path)
    losses = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        if name == "stopped":
            stop_within(steps=6)
            assert quick("train_prune.py", *common, "--output_dir", folder)[0] == 143
        status, _, err = quick("train_prune.py", *common, "--output_dir", folder)
        assert (status, err) == (0, "")
        (path,) = (folder / "saved_models").glob("*.pt")
        losses.append(torch.load(path, weights_only=True)["metrics"]["train_loss"])
    assert captured_steps and all(graph is not None for graph in captured_steps)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_memory_does_not_grow_over_many_replays(captured_steps):
    device = torch.device("cuda", 0)
    model = build_model("Mlp", 10, 1, 8).to(device)
    regions = build_constraints(model, "k_sparse_constraints", tau=5.0, mode="diameter")
    optimizer = SFW(model.parameters(), regions)
    images = torch.randint(256, (64 * 10 + 3, 1, 8, 8), device=device, dtype=torch.uint8)
    batches = batches_of(images, 64)
    step = partial(train_step, model, model, optimizer, "fp32")
    step, reserved = CapturedStep(step, optimizer, 64, device), []
    for _ in range(5):
        for inputs, targets in batches:
            step(inputs, targets, 1.0)
        reserved.append(torch.cuda.memory_reserved())
    assert len(captured_steps) == 1
    assert reserved[-1] == reserved[1]
