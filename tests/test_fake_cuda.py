"""A whole run on fake CUDA tensors, which have no values: what meets a CPU tensor there fails."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, ProjectedSGD
from train_prune import train_step
from utils.compute.measure import count_above, evaluate
from utils.datasets import DATASETS
from utils.datasets.augment import AUGMENTATIONS
from utils.datasets.batches import Batches
from utils.prune.corrections.recalibrate import recalibrate
from utils.prune.corrections.repair import layers_with_weights, measure_signals, repair
from utils.prune.weights.allocation import ALLOCATIONS
from utils.prune.weights.ranking import MagnitudeRanking
from utils.train.captured_step import CapturedStep


@pytest.fixture
def cuda(monkeypatch):
    """Fake tensors within, and a CUDA stream that is none."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    with FakeTensorMode():
        yield torch.device("cuda", 0)


def cuda_batches(device, count=40, size=16, augment=None):
    info = DATASETS["cifar10"]
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8, device=device)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    batches = Batches(images, labels, size, info.mean, info.std)
    if augment is not None:  # there is no fake generator: None stands for PyTorch's own
        take = batches.take

        def take_augmented(chosen):
            augment(images[chosen], None)
            return take(chosen)

        batches.take = take_augmented
    return batches


def cuda_model(device, arch="ResNet18"):
    with device:
        model = build_model(arch, 10, 3, 32)
    regions = build_constraints(model, "k_sparse_constraints", tau=15.0, mode="diameter")
    return model, regions


@pytest.mark.parametrize(
    ("optimizer", "augment"),
    [("SGD", None), *(("SFW", function) for function in AUGMENTATIONS.values())],
)
def test_training_steps_stay_on_the_device_and_never_wait_for_it(
    optimizer, augment, cuda, monkeypatch
):
    model, regions = cuda_model(cuda)

    def backward(loss):
        """PyTorch's own wants a driver."""
        for p in model.parameters():
            p.grad = torch.empty_like(p)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    make_feasible(model, regions)
    chosen = partial(SFW, fused=False) if optimizer == "SFW" else ProjectedSGD
    sfw = chosen(model.parameters(), regions)
    batches = cuda_batches(cuda, augment=augment)
    step = CapturedStep(partial(train_step, model, model, sfw, "fp32"), sfw, 16, cuda)
    step.captures = False  # steps are as they would be captured; a wait for a value raises
    for (inputs, targets), sparsity in zip(batches, (0.0, 0.9, 0.0), strict=True):
        results = step(inputs, targets, 0.1, sparsity)
    assert results.device == sfw.param_groups[0]["lr"].device == cuda
    assert all(p.device == cuda for p in model.parameters())


@pytest.mark.parametrize("arch", ["ResNet18", "Mlp"])
def test_evaluation_waits_only_for_its_result(arch, cuda):
    model, _ = cuda_model(cuda, arch)
    with pytest.raises(DataDependentOutputException):  # the one number that it returns
        evaluate(model, cuda_batches(cuda), "bf16")
    with pytest.raises(DataDependentOutputException):
        count_above(model)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_ranking_and_pruning_stay_on_the_device(allocation, cuda):
    model, _ = cuda_model(cuda, "Mlp")
    ranking = MagnitudeRanking(model, allocation, "weights")
    ranking.prune(0.5)
    assert ranking.order.device == cuda


def test_recalibration_and_repair_stay_on_the_device(cuda):
    inputs = [inputs for inputs, _ in cuda_batches(cuda)]
    model, _ = cuda_model(cuda, "VGG16")
    recalibrate(model, inputs, "bf16")
    model, _ = cuda_model(cuda, "Mlp")
    dense = measure_signals(model, inputs, list(layers_with_weights(model)))
    repair(model, dense, inputs)
