#!/usr/bin/env python3
"""Train a network once with stochastic Frank-Wolfe, ready to be pruned to any sparsity.

Writes the model to saved_models/ and a text log to saved_logs/SFW_one_shot_prune/. Then
test_prune.py, with the same flags, prunes it.
"""

from utils.process.startup import start_script

if __name__ == "__main__":
    start_script()  # before imports that take seconds

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constraints import Region, build_constraints, make_feasible
from optim import LR_SCHEMES, SFW, ProjectedSGD, warm_up
from utils.compute.device import autocast, check_compiler, compiled, pick_device, placed
from utils.compute.measure import evaluation_batch_size
from utils.datasets.batches import Batches
from utils.outputs.model_file import new_model
from utils.process.errors import exit_status
from utils.prune.recalibrate import note_stale_statistics
from utils.prune.steps import check_pruned_steps, pruned
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.train.distributed import World, launched
from utils.train.progress import EpochProgress
from utils.train.run import TrainingRun, training_run
from utils.train.sfw_init import learn_initial_scales
from utils.train.step import TrainingStep, check_last_batch, last_sparsities


def train(config: Config, world: World | None = None) -> None:
    """Train a network with these settings, or go on where a run of them was stopped.

    `world` has the processes that share the work; without it there is one.
    """
    world = world or World()
    device = world.in_turn(lambda: pick_device(world.device_number(config.gpu)))
    if config.compile:
        check_compiler(device)
    with training_run(config, world) as run:
        if run.is_finished:
            return
        dataset = world.in_turn(config.load_dataset).to(device)
        generator = torch.Generator(device).manual_seed(config.seed)
        train_batches = dataset.train_batches(config.train_batchsize, generator)

        model = trainable_model(config, train_batches, parts=1 if config.sync_bn else world.size)
        size = evaluation_batch_size(model, dataset.test_images, config.test_batchsize)
        test_batches = dataset.test_batches(size, world.part(len(dataset.test_images)))
        regions = build_constraints(
            model, config.constraint, config.k_sparseness, config.k_frac, config.tau, config.mode
        )
        make_feasible(model, regions)
        run.open(model, dataset)
        if config.sfw_init and run.saved is None:
            # Batches from a generator of their own: training sees the same with and without.
            own = torch.Generator(device).manual_seed(config.seed + 1)
            halves = dataset.train_batches((config.train_batchsize + 1) // 2, own)
            run.metrics["sfw_init_scales"] = world.on_main(
                lambda: learn_initial_scales(config, model, halves, regions, run.log)
            )
        optimizer = build_optimizer(config, model, regions)
        network = world.parallel(model, config.sync_bn)
        if config.compile:
            network = compiled(network, world.part_size(config.train_batchsize))
        train_on = partial(train_step, network, optimizer, config.precision)
        step = TrainingStep(train_on, train_batches, optimizer, world, partial(pruned, model))
        run.begin(model, optimizer, generator)

        for epoch in run.epochs():
            rates = LR_SCHEMES[config.lr_scheme](
                epoch, config.epoch_num, len(train_batches), run.metrics["train_loss"]
            )
            rates = warm_up(rates, epoch * len(train_batches), config.warmup_steps)
            with run.saved_epoch():
                progress = train_epoch(run, step, [config.lr * rate for rate in rates])
                accuracy = world.accuracy(model, test_batches, config.precision)
                run.record(progress, accuracy, config.lr * rates[-1])
        run.finish()
        last = run.metrics["train_accuracy"][-1], run.metrics["test_accuracy"][-1]
        world.on_main(lambda: note_stale_statistics(config, model, dataset, *last))


def trainable_model(config: Config, batches: Batches, parts: int) -> nn.Module:
    """The network, on the device of these batches, each of which is shared in `parts`.

    Raises UserError where it cannot be trained on them with these settings.
    """
    device, shape = batches.images.device, config.image_shape
    model = placed(new_model(config), device, shape)
    check_last_batch(model, batches, shape, parts)
    if config.pruned_steps:
        images = torch.ones(2, *shape, device=device)
        check_pruned_steps(model, images, last_sparsities(config, len(batches)))
    return model


def train_epoch(run: TrainingRun, step: TrainingStep, rates: Sequence[float]) -> EpochProgress:
    """One pass over the training images with these learning rates, one for each step."""
    run.state.model.train()
    with run.steps(step, rates) as progress:
        while not progress.complete:
            step()
            progress.advance()
            run.signals.check()
    return progress


def train_step(
    network: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    precision: str,
    inputs: Tensor,
    targets: Tensor,
    context: AbstractContextManager[None],
) -> tuple[Tensor, Tensor]:
    """Forward, backward, step; returns the batch's mean loss and logits, still on the device.

    Forward and backward are in the `context`, which prunes the network in pruned steps.
    """
    with context:
        with autocast(inputs.device, precision):
            logits = network(inputs)
            loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


def build_optimizer(
    config: Config, model: nn.Module, regions: list[Region]
) -> torch.optim.Optimizer:
    """SFW or projected SGD over the regions, one for each of the model's parameters."""
    common = dict(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "SFW":
        return SFW(model.parameters(), regions, rescale=config.rescale, **common)
    return ProjectedSGD(model.parameters(), regions, **common)


def main(argv: list[str] | None = None) -> int:
    return exit_status(
        lambda: launched(train, lambda: Parser(__doc__).parse(argv).settings(Config))
    )


if __name__ == "__main__":
    sys.exit(main())
