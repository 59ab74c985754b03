#!/usr/bin/env python3
"""Train a network once with stochastic Frank-Wolfe, ready to be pruned to any sparsity.

Writes the model to saved_models/ and a text log to saved_logs/SFW_one_shot_prune/. Then
test_prune.py, with the same flags, prunes it.
"""

import math
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constraints import Region, build_constraints, make_feasible
from optim import LR_SCHEMES, SFW, ProjectedSGD
from optim.constrained import ConstrainedOptimizer
from utils.batches import Batches
from utils.checkpoint import new_model, save_model
from utils.cli import Parser
from utils.config import Config
from utils.datasets import load_dataset
from utils.device import autocast, check_compiler, compiled, pick_device, placed
from utils.errors import RunError, exit_status
from utils.evaluate import evaluate
from utils.files import check_writable
from utils.initial_scales import learn_initial_scales
from utils.logs import TextLog, configuration_line, distribution_line, test_line, train_line
from utils.progress import EpochProgress
from utils.prune import THRESHOLDS, count_above


def train(config: Config) -> None:
    """Train a network with these settings, and save it and its log."""
    device = pick_device(config.gpu)
    if config.compile:
        check_compiler()
    files = config.files
    check_writable([files.model, files.train_log, files.scales_plot], "--output_dir")
    dataset = load_dataset(config.data, config.data_dir, config.color_channel, config.image_size)
    dataset = dataset.to(device)
    generator = torch.Generator(device).manual_seed(config.seed)
    train_batches = dataset.train_batches(config.train_batchsize, generator)
    test_batches = dataset.test_batches(config.test_batchsize)

    model = new_model(config).to(device)
    constraints = build_constraints(
        model, config.constraint, config.k_sparseness, config.k_frac, config.tau, config.mode
    )
    make_feasible(model, constraints)
    log = TextLog(config.files.train_log)
    log.add(configuration_line(config))
    print(introduction(config, model, len(dataset.train_labels), len(dataset.test_labels)))
    metrics = {"train_loss": [], "train_accuracy": [], "test_accuracy": []}
    if config.sfw_init:
        scales = learn_initial_scales(config, model, dataset, constraints, log)
        metrics["sfw_init_scales"] = scales

    model = placed(model, device, config.precision)
    network = compiled(model, config.train_batchsize) if config.compile else model
    optimizer = build_optimizer(config, model, constraints)
    scheme = LR_SCHEMES[config.lr_scheme]
    for epoch in range(config.epoch_num):
        started = time.monotonic()
        factor = scheme(epoch, config.epoch_num, metrics["train_loss"])
        for group in optimizer.param_groups:
            group["lr"] *= factor
        title = f"Epoch {epoch + 1}/{config.epoch_num}"
        model.train()
        progress = train_epoch(network, train_batches, optimizer, title, config.precision)
        if not math.isfinite(progress.loss):
            raise RunError(f"epoch {epoch + 1}: the loss is {progress.loss}; lower --lr or --tau")
        accuracy = evaluate(model, test_batches, config.precision)
        metrics["train_loss"].append(progress.loss)
        metrics["train_accuracy"].append(progress.accuracy)
        metrics["test_accuracy"].append(accuracy)
        log_epoch(log, epoch, progress, accuracy, model)
        lr, seconds = optimizer.param_groups[0]["lr"], time.monotonic() - started
        print(summary(title, progress, accuracy, lr, seconds), flush=True)
    save_model(config.files.model, model, config, config.epoch_num, metrics)
    print("\nFiles of this run:", *config.files.existing(), sep="\n  ")


def build_optimizer(
    config: Config, model: nn.Module, constraints: list[Region]
) -> ConstrainedOptimizer:
    common = dict(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "SFW":
        return SFW(model.parameters(), constraints, rescale=config.rescale, **common)
    return ProjectedSGD(model.parameters(), constraints, **common)


def train_epoch(
    network: Callable[[Tensor], Tensor],
    batches: Batches,
    optimizer: ConstrainedOptimizer,
    title: str,
    precision: str,
) -> EpochProgress:
    """One pass over the training images; returns every step's loss and accuracy."""
    with EpochProgress(title, len(batches)) as progress:
        for inputs, targets in batches:
            with autocast(inputs.device, precision):
                logits = network(inputs)
                loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.record(loss, logits, targets)
    return progress


def log_epoch(
    log: TextLog, epoch: int, progress: EpochProgress, accuracy: float, model: nn.Module
) -> None:
    steps = len(progress.losses)
    for i, (loss, batch) in enumerate(zip(progress.losses, progress.accuracies, strict=True)):
        log.add(train_line(epoch * steps + i + 1, epoch + 1, loss, batch))
    log.add(test_line(epoch + 1, accuracy))
    for threshold, above in zip(THRESHOLDS, count_above(model), strict=True):
        log.add(distribution_line(threshold, above))
    log.save()


def summary(title: str, progress: EpochProgress, accuracy: float, lr: float, seconds: float) -> str:
    return (
        f"{title}: loss {progress.loss:.4f}, training accuracy {progress.accuracy:.2f} %,"
        f" test accuracy {accuracy:.2f} %, lr {lr:.4g}, {seconds:.2f} s"
    )


def introduction(config: Config, model: nn.Module, train_count: int, test_count: int) -> str:
    count = sum(p.numel() for p in model.parameters())
    return (
        f"{config.arch} with {count:,} parameters on {config.data}, {train_count:,} training and"
        f" {test_count:,} test images; {config.optimizer}, {config.constraint}"
    )


def main(argv: list[str] | None = None) -> int:
    return exit_status(lambda: train(Config(**vars(Parser(__doc__).parse_args(argv)))))


if __name__ == "__main__":
    sys.exit(main())
