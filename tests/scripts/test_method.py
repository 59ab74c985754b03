"""train_prune.py does what the paper's algorithm does, written out here with the same settings."""

import pytest
import torch
import torch.nn.functional as F
from reference import sfw_step
from runs import flags_of
from torch import nn

from constraints import build_constraints, make_feasible
from models import ARCHITECTURES, Architecture, build_model
from optim import LR_SCHEMES, sfw_init
from utils.settings.config import Config
from utils.train.pruned_steps import step_sparsities

METHOD = dict(
    data="digits",
    arch="Mlp",
    lr=0.5,
    lr_scheme="keep",
    momentum=0.6,
    weight_decay=0.01,
    train_batchsize=301,  # five batches, the last of which is smaller
    epoch_num=2,
    seed=3,
)
SFW_OPTIONS = dict(k_sparseness=3, k_frac=0.1, tau=3.0, mode="radius", rescale="diameter")
SGD_OPTIONS = dict(optimizer="SGD", constraint="unconstraints")


@pytest.fixture(autouse=True)
def telling_entries(monkeypatch):
    """A network that differs in training and evaluation; a schedule that uses all its arguments."""

    def normalised(num_classes, color_channel, image_size):
        size = color_channel * image_size**2
        layers = nn.Linear(size, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, num_classes)
        return nn.Sequential(nn.Flatten(), *layers)

    def by_loss(epoch, epochs, steps, losses):
        assert len(losses) == epoch
        return [(1 + step) / steps / (epochs + sum(losses)) for step in range(steps)]

    monkeypatch.setitem(ARCHITECTURES, "Mlp", Architecture(normalised))
    monkeypatch.setitem(LR_SCHEMES, "keep", by_loss)


def leave_gradients(model, inputs, targets, sparsity):
    """Those of the model, pruned to this sparsity in a pruned step; returns the loss."""
    dense = {name: values.clone() for name, values in model.state_dict().items()}
    weights = [p for p in model.parameters() if p.dim() > 1]
    magnitudes = torch.cat([p.detach().abs().flatten() for p in weights]).sort().values
    removed = int(sparsity * len(magnitudes))
    masks = [p.detach().abs() > (magnitudes[removed - 1] if removed else -1) for p in weights]
    for p, mask in zip(weights, masks, strict=True):
        p.data.mul_(mask)
    loss = F.cross_entropy(model(inputs), targets)
    model.zero_grad()
    loss.backward()
    for p, mask in zip(weights, masks, strict=True):
        p.grad.mul_(mask)
    if sparsity:
        model.load_state_dict(dense)
    return loss.item()


def written_out(config):
    """The model, the mean loss of each epoch, and the last learning rate."""
    dataset = config.load_dataset()
    torch.manual_seed(config.seed)
    model = build_model(config.arch, 10, 1, 8)
    sizes = config.k_sparseness, config.k_frac, config.tau, config.mode
    regions = build_constraints(model, config.constraint, *sizes)
    make_feasible(model, regions)
    if config.sfw_init:
        half, own = (config.train_batchsize + 1) // 2, torch.Generator().manual_seed(4)
        halves = dataset.train_batches(half, own)
        sfw_init(model, halves, regions, config.lr, config.sfw_init_iters)
    batches = dataset.train_batches(config.train_batchsize, torch.Generator().manual_seed(3))
    options = dict(momentum=config.momentum, weight_decay=config.weight_decay)
    sgd = torch.optim.SGD(model.parameters(), **options)
    momenta, means, step = [None] * len(regions), [], 0
    model.train()
    for epoch in range(config.epoch_num):
        losses = []
        rates = LR_SCHEMES[config.lr_scheme](epoch, config.epoch_num, len(batches), means)
        drawn = step_sparsities(config, epoch, len(batches))
        for (inputs, targets), rate, s in zip(batches, rates, drawn, strict=True):
            lr = config.lr * rate * min(1, (step := step + 1) / max(1, config.warmup_steps))
            loss = leave_gradients(model, inputs, targets, s)
            losses += [] if s else [loss]
            if config.optimizer == "SGD":
                sgd.param_groups[0]["lr"] = lr
                sgd.step()
                continue
            for i, (p, region) in enumerate(zip(model.parameters(), regions, strict=True)):
                theta, momenta[i] = sfw_step(
                    p.detach(), p.grad, momenta[i], region, lr=lr, rescale=config.rescale, **options
                )
                p.data.copy_(theta)
        means.append(sum(losses) / len(losses))
    return model, means, lr


@pytest.mark.parametrize(
    "options",
    [
        SFW_OPTIONS,
        SFW_OPTIONS | dict(sfw_init=1, sfw_init_iters=3),
        SGD_OPTIONS,
        SFW_OPTIONS | dict(pruned_steps=0.7),
        SFW_OPTIONS | dict(warmup_steps=7),
    ],
    ids=["SFW", "SFW-Init", "SGD", "pruned steps", "warm-up"],
)
def test_a_run_is_the_algorithm_written_out(options, quick, tmp_path):
    settings = METHOD | options
    config = Config(**settings, output_dir=tmp_path)
    status, out, err = quick("train_prune.py", *flags_of(settings), "--output_dir", tmp_path)
    assert status == 0, err
    saved = torch.load(config.files.model, weights_only=True)
    model, losses, lr = written_out(config)
    assert saved["metrics"]["train_loss"] == pytest.approx(losses, rel=1e-5)
    assert f", lr {lr:.4g}, " in out.splitlines()[-4]
    for name, values in model.state_dict().items():
        torch.testing.assert_close(saved["state_dict"][name], values, rtol=1e-4, atol=1e-5)
