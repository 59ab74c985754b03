"""What only a GPU can show: steps that are captured, and that never wait for the device."""

import warnings
from functools import partial

import pytest
import torch

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, ProjectedSGD, sfw_init
from train_prune import train_step
from utils.compute.device import placed
from utils.datasets.augment import crop_and_flip
from utils.datasets.batches import Batches
from utils.prune import global_prune
from utils.prune.recalibrate import recalibrate
from utils.prune.repair import layers_with_weights, measure_signals, repair
from utils.train.step import TrainingStep

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


def batches_of(images, size, augment=None):
    labels, channels = torch.arange(len(images), device=images.device) % 10, images.shape[1]
    generator = torch.Generator(images.device).manual_seed(0)
    return Batches(images, labels, size, (0.5,) * channels, (0.25,) * channels, augment, generator)


@pytest.fixture
def captured_steps(monkeypatch):
    """What TrainingStep captures: one entry for each graph that was recorded."""
    graphs, capture = [], TrainingStep._capture

    def noted(step, size):
        capture(step, size)
        graphs.append(step.graph)

    monkeypatch.setattr(TrainingStep, "_capture", noted)
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
        step = TrainingStep(partial(train_step, model, optimizer, precision), batches, optimizer)
        step.captures = captures
        found = []
        for epoch in range(2):
            step.begin_epoch(batches.order(), [0.1 / (epoch + 1)] * len(step.sizes), 0)
            for _ in step.sizes:
                step()
            found += step.results[:, 0].tolist()
        losses.append(found)
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
    step = TrainingStep(partial(train_step, model, optimizer, "fp32"), batches, optimizer)
    reserved = []
    for _ in range(5):
        step.begin_epoch(batches.order(), [1.0] * len(step.sizes), 0)
        for _ in step.sizes:
            step()
        reserved.append(torch.cuda.memory_reserved())
    assert len(captured_steps) == 1
    assert reserved[-1] == reserved[1]


def test_recalibration_on_a_gpu_measures_what_a_cpu_does():
    inputs = [
        torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    statistics = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = build_model("ResNet18", 10, 3, 32).to(device)
        recalibrate(model, [x.to(device) for x in inputs])
        statistics.append({name: values.cpu() for name, values in model.named_buffers()})
    for name, values in statistics[0].items():
        torch.testing.assert_close(statistics[1][name], values, rtol=1e-2, atol=1e-2)


def test_repair_on_a_gpu_gives_the_weights_that_a_cpu_does():
    inputs = [torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))]
    weights = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = build_model("Mlp", 10, 1, 8).to(device)
        batches = [x.to(device) for x in inputs]
        dense = measure_signals(model, batches, list(layers_with_weights(model)))
        global_prune(model, 0.8)
        repair(model, dense, batches)
        weights.append([p.detach().cpu() for p in model.parameters()])
    for on_cpu, on_gpu in zip(*weights, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
