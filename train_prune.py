#!/usr/bin/env python3
"""Train a network once with stochastic Frank-Wolfe, ready to be pruned to any sparsity.

Writes the model to saved_models/ and a text log to saved_logs/SFW_one_shot_prune/. Then
test_prune.py, with the same flags, prunes it.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constraints import Region, build_constraints, make_feasible
from optim import LR_SCHEMES, SFW, ProjectedSGD
from optim.constrained import ConstrainedOptimizer
from utils.compute.device import autocast, check_compiler, compiled, pick_device, placed
from utils.compute.measure import THRESHOLDS, all_finite, count_above, evaluate
from utils.datasets import Dataset
from utils.datasets.batches import Batches
from utils.outputs.logs import TextLog, configuration_line, distribution_line, test_line, train_line
from utils.outputs.model_file import model_contents, new_model, write_contents
from utils.process.errors import RunError, exit_status, warn
from utils.process.signals import Stopped, StopSignals
from utils.process.writing import check_writable, remove_leftovers
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.train.cuda_graph import CapturedStep, Step
from utils.train.lock import run_lock
from utils.train.progress import EpochProgress
from utils.train.resume import ResumeFile, RunState
from utils.train.sfw_init import learn_initial_scales


def train(config: Config) -> None:
    """Train a network with these settings, and save it and its log; go on where it was stopped."""
    device = pick_device(config.gpu)
    files, resume = config.files, ResumeFile(config)
    written = [files.model, files.resume, files.previous_resume, files.train_log, files.scales_plot]
    check_writable([*written, files.lock], "--output_dir")
    if config.compile:
        check_compiler()
    with StopSignals() as signals:
        dataset = config.load_dataset().to(device)
        with run_lock(files.lock):
            if config.resume == "auto" and files.model.is_file() and not resume.exists():
                print(f"Trained already; --resume never trains it anew:\n  {files.model}")
                return
            remove_leftovers(written)
            try:
                train_on(dataset, config, resume, signals)
            except Stopped as stopped:
                if resume.position is not None:
                    never = " without --resume never" if config.resume == "never" else ""
                    stopped.advice = f"the same command{never} goes on after {resume.position}"
                raise
    print("\nFiles of this run:", *files.existing(), sep="\n  ")


def train_on(dataset: Dataset, config: Config, resume: ResumeFile, signals: StopSignals) -> None:
    """Train from the start, or go on from what the resume file holds."""
    device = dataset.train_images.device
    saved = resume.load(device) if config.resume == "auto" else None
    generator = torch.Generator(device).manual_seed(config.seed)
    train_batches = dataset.train_batches(config.train_batchsize, generator)
    test_batches = dataset.test_batches(config.test_batchsize)

    model = placed(new_model(config), device, config.precision)
    constraints = build_constraints(
        model, config.constraint, config.k_sparseness, config.k_frac, config.tau, config.mode
    )
    make_feasible(model, constraints)
    log = TextLog(config.files.train_log)
    log.add(configuration_line(config))
    print(introduction(config, model, len(dataset.train_labels), len(dataset.test_labels)))
    metrics = {"train_loss": [], "train_accuracy": [], "test_accuracy": []}
    if config.sfw_init and saved is None:
        # A generator of its own: training then sees the same batches with SFW-Init and without.
        own = torch.Generator(device).manual_seed(config.seed + 1)
        halves = dataset.train_batches((config.train_batchsize + 1) // 2, own)
        scales = learn_initial_scales(config, model, halves, constraints, log)
        metrics["sfw_init_scales"] = scales

    network = compiled(model, config.train_batchsize) if config.compile else model
    optimizer = build_optimizer(config, model, constraints)
    step: Step = partial(train_step, network, optimizer, config.precision)
    if config.compile and device.type == "cuda":
        step = CapturedStep(step, optimizer, config.train_batchsize)
    state = RunState(model, optimizer, generator, metrics, log)
    if saved is not None:
        state.restore(saved, resume.newest)
        resume.position = state.position
        print(f"Going on after {state.position} of {config.epoch_num} epochs")
    else:
        save_progress(resume, state)
    while state.epoch < config.epoch_num:
        with signals.deferred():
            news = run_epoch(config, state, step, train_batches, test_batches, signals)
            save_progress(resume, state)
            print(news, end="", flush=True)
    try:
        write_contents(config.files.model, model_contents(model, config, state.epoch, metrics))
        log.save()
    except RunError as error:
        raise RunError(f"{error}; once that is mended, the same command ends the run") from None
    resume.remove()


def run_epoch(
    config: Config,
    state: RunState,
    step: Step,
    train_batches: Batches,
    test_batches: Batches,
    signals: StopSignals,
) -> str:
    """Train for one epoch at the scheme's learning rate, test, and note the results in `state`.

    Returns a line for people. On a signal it ends early, with none and `state.partial` set; from
    there it goes on the next time.
    """
    started, metrics, groups = time.monotonic(), state.metrics, state.optimizer.param_groups
    rates = LR_SCHEMES[config.lr_scheme](
        state.epoch, config.epoch_num, len(train_batches), metrics["train_loss"]
    )
    if state.partial is None:
        start, done = state.generator.get_state(), 0
    else:
        start, done = state.partial["start"], len(state.partial["losses"])
    title = f"Epoch {state.epoch + 1}/{config.epoch_num}"
    state.model.train()
    with EpochProgress(title, len(train_batches), state.partial) as progress:
        batches = train_batches.rest_of_round(done, start if done else None)
        for rate, (inputs, targets) in zip(rates[done:], batches, strict=True):
            for group in groups:
                group["lr"] = config.lr * rate
            progress.record(*step(inputs, targets), targets)
            if signals.pending:
                state.partial = progress.done() | {"start": start}
                return ""
    state.partial = None
    accuracy = evaluate(state.model, test_batches, config.precision)
    if not all_finite(state.model):
        last = f"step {len(progress.losses)}, whose loss was {progress.losses[-1]:.4g}"
        raise RunError(f"{title}: weights are not finite after {last}; lower --lr or --tau")
    metrics["train_loss"].append(progress.loss)
    metrics["train_accuracy"].append(progress.accuracy)
    metrics["test_accuracy"].append(accuracy)
    log_epoch(state.log, state.epoch, progress, accuracy, state.model)
    state.epoch += 1
    seconds = time.monotonic() - started
    return summary(title, progress, accuracy, groups[0]["lr"], seconds)


def train_step(
    network: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    precision: str,
    inputs: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Forward, backward, step; returns the batch's mean loss and logits, still on the device."""
    with autocast(inputs.device, precision):
        logits = network(inputs)
        loss = F.cross_entropy(logits, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


def save_progress(resume: ResumeFile, state: RunState) -> None:
    """Save the log and what the run can go on from; a disk that takes neither ends no run."""
    for save in (state.log.save, lambda: resume.save(state)):
        try:
            save()
        except RunError as error:
            saved = f"the run is saved up to {resume.position}" if resume.position else "not saved"
            warn(f"{error}; {saved}, and every epoch tries again")


def build_optimizer(
    config: Config, model: nn.Module, constraints: list[Region]
) -> ConstrainedOptimizer:
    common = dict(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "SFW":
        return SFW(model.parameters(), constraints, rescale=config.rescale, **common)
    return ProjectedSGD(model.parameters(), constraints, **common)


def log_epoch(
    log: TextLog, epoch: int, progress: EpochProgress, accuracy: float, model: nn.Module
) -> None:
    steps = len(progress.losses)
    for i, (loss, batch) in enumerate(zip(progress.losses, progress.accuracies, strict=True)):
        log.add(train_line(epoch * steps + i + 1, epoch + 1, loss, batch))
    log.add(test_line(epoch + 1, accuracy))
    for threshold, above in zip(THRESHOLDS, count_above(model), strict=True):
        log.add(distribution_line(threshold, above))


def summary(title: str, progress: EpochProgress, accuracy: float, lr: float, seconds: float) -> str:
    return (
        f"{title}: loss {progress.loss:.4f}, training accuracy {progress.accuracy:.2f} %,"
        f" test accuracy {accuracy:.2f} %, lr {lr:.4g}, {seconds:.2f} s\n"
    )


def introduction(config: Config, model: nn.Module, train_count: int, test_count: int) -> str:
    count = sum(p.numel() for p in model.parameters())
    return (
        f"{config.arch} with {count:,} parameters on {config.data}, {train_count:,} training and"
        f" {test_count:,} test images; {config.optimizer}, {config.constraint}"
    )


def main(argv: list[str] | None = None) -> int:
    return exit_status(lambda: train(Parser(__doc__).parse(argv).settings(Config)))


if __name__ == "__main__":
    sys.exit(main())
