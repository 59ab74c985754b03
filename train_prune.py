#!/usr/bin/env python3
"""Train a network once with stochastic Frank-Wolfe, ready to be pruned to any sparsity.

Writes the model to saved_models/ and a text log to saved_logs/SFW_one_shot_prune/. Then
test_prune.py, with the same flags, prunes it.
"""

import os
import sys
from collections.abc import Callable
from functools import partial

if os.environ.get("WORLD_SIZE", "1") != "1":
    # Without PyTorch's warnings, which each process would print; it reads this as it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constraints import Region
from optim import SFW, ProjectedSGD
from utils.checkpoints.model_file import new_model
from utils.compute.device import (
    autocast,
    check_compiler,
    compiled,
    network_generator,
    pick_device,
    placed,
)
from utils.compute.measure import evaluation_batch_size
from utils.datasets.batches import Batches
from utils.process.errors import exit_status
from utils.prune.corrections.recalibrate import note_stale_statistics
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.train.captured_step import CapturedStep, Step
from utils.train.checkpointing import Checkpointer, RunState, checkpointing
from utils.train.distributed import World, launched
from utils.train.pruned_steps import pruned, step_sparsities
from utils.train.recording import Recorder
from utils.train.sfw_init import learn_initial_scales
from utils.train.trials import check_steps, feasible_regions, learning_rates


def train(config: Config, world: World | None = None) -> None:
    """Train a network with these settings, shared by a `world`, or go on where it was stopped."""
    world = world or World()
    gpu = config.gpu if config.gpu < 0 or world.size == 1 else world.local_rank
    device = world.in_turn(lambda: pick_device(gpu))
    if config.compile:
        check_compiler(device)
    with checkpointing(config, world) as checkpoints:
        if checkpoints.finished:
            return
        saved = world.on_main(lambda: checkpoints.load(device))
        dataset = world.in_turn(config.load_dataset).to(device)
        generator = torch.Generator(device).manual_seed(config.seed)
        batches = dataset.train_batches(config.train_batchsize, generator)
        model = placed(new_model(config), device, config.image_shape)
        check_steps(config, model, batches, parts=world.size)
        size = evaluation_batch_size(model, dataset.test_images, config.test_batchsize)
        test_batches = dataset.test_batches(size, world.part(len(dataset.test_images)))
        regions = feasible_regions(config, model)

        recorder = Recorder(config, world)
        recorder.begin(model, dataset)
        if saved is None:
            if config.sfw_init:
                recorder.metrics["sfw_init_scales"] = world.on_main(
                    lambda: learn_initial_scales(config, model, dataset, regions, recorder.log)
                )
            recorder.report_gauges(model, regions)
        optimizer = build_optimizer(config, model, regions)
        state = RunState(config, model, optimizer, batches, recorder)
        checkpoints.begin(state, saved)
        train_epochs(state, build_step(state, world), test_batches, checkpoints, world)
        checkpoints.finish(state)
        recorder.finish()
        last = recorder.metrics["train_accuracy"][-1], recorder.metrics["test_accuracy"][-1]
        world.on_main(lambda: note_stale_statistics(config, model, dataset, *last))


def train_epochs(
    state: RunState, step: Step, test_batches: Batches, checkpoints: Checkpointer, world: World
) -> None:
    """The epochs that are left; each ends with a test, is recorded, and is saved if due."""
    config, model, batches, recorder = state.config, state.model, state.batches, state.recorder
    dropout, steps = network_generator(batches.images.device), len(batches)
    for epoch in range(recorder.epoch, config.epoch_num):
        rates = learning_rates(config, epoch, steps, recorder.metrics["train_loss"])
        sparsities = step_sparsities(config, epoch, steps)  # 0 but for pruned steps
        seeds = step_seeds(config.seed, epoch, world.rank, steps)  # of dropout
        model.train()
        for i, (inputs, targets) in recorder.watched(batches):
            dropout.manual_seed(seeds[i])
            part, labels, fraction = world.share(inputs, targets)
            results = step(part, labels, rates[i], sparsities[i], fraction)
            recorder.add(results, len(targets), sparsities[i])
            checkpoints.stop_if_signalled(state)
        accuracy = world.accuracy(model, test_batches, config.precision)
        recorder.end_epoch(model, accuracy, rates[-1])
        checkpoints.save_if_due(state)
        checkpoints.stop_if_signalled(state)


def step_seeds(seed: int, epoch: int, rank: int, steps: int) -> list[int]:
    """A seed for each step of an epoch in the process `rank`."""
    return np.random.SeedSequence([seed, epoch, rank]).generate_state(steps).tolist()


def train_step(
    model: nn.Module,
    network: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    precision: str,
    inputs: Tensor,
    targets: Tensor,
    lr: float | Tensor,
    sparsity: float = 0.0,
    weight: float = 1.0,
) -> Tensor:
    """Forward, backward, step; nothing waits for the device.

    `network` computes the forward pass of `model`, which is pruned to `sparsity` meanwhile, and
    `weight` multiplies the loss. Returns, on the device, the weighted mean loss, the number of
    inputs classified correctly, and the weighted mean alpha of SFW.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    with pruned(model, sparsity):
        with autocast(inputs.device, precision):
            logits = network(inputs)
            loss = weight * F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    correct = (logits.argmax(1) == targets).sum() * (weight > 0)
    alpha = optimizer.mean_alpha() if isinstance(optimizer, SFW) else loss.new_zeros(())
    return torch.stack([loss.detach().float(), correct.float(), weight * alpha.float()])


def build_step(state: RunState, world: World) -> Step:
    """`train_step` on the network as --compile and the processes have it; captured on a GPU."""
    config, model, device = state.config, state.model, state.batches.images.device
    network = world.parallel(model, config.sync_bn)
    if config.compile:
        part = world.part(config.train_batchsize)
        network = compiled(network, part.stop - part.start)
    step = partial(train_step, model, network, state.optimizer, config.precision)
    if device.type == "cpu" or world.size > 1:
        return step
    return CapturedStep(step, state.optimizer, config.train_batchsize, device)


def build_optimizer(
    config: Config, model: nn.Module, regions: list[Region]
) -> torch.optim.Optimizer:
    """SFW or projected SGD over the regions, one for each of the model's parameters."""
    common = dict(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "SFW":
        return SFW(model.named_parameters(), regions, rescale=config.rescale, **common)
    return ProjectedSGD(model.named_parameters(), regions, **common)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    return exit_status(lambda: launched(train, lambda: parser.parse(argv).settings(Config)))


if __name__ == "__main__":
    sys.exit(main())
