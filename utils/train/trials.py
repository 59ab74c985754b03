"""Regions and schedules, which users may have written, are tried before a training."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from constraints import Region
from models import describe_error
from optim import LR_SCHEMES, warm_up
from utils.process.errors import RunError, ScriptError, UserError
from utils.settings.config import Config

# Sums over millions of float32 entries are not exact, and a wrong region is wrong by more.
TOLERANCE = 0.01
ADVICE = "see docs/own_regions.md"


@contextmanager
def reported(flag: str, kind: type[ScriptError] = UserError) -> Iterator[None]:
    """Raise any error of the block as one of this kind, which names the flag and the line."""
    try:
        yield
    except (ScriptError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise kind(f"{flag}: {describe_error(error)}; {ADVICE}") from error


@torch.no_grad()
def check_regions(config: Config, model: nn.Module, regions: Sequence[Region]) -> None:
    """Raise UserError for a region that returns what is not in it, or is of another shape.

    There is one for each of `model.parameters()`. Of those of one kind and shape one is tried, on a
    gradient from -1 to 1. What it takes is less than a training step.
    """
    tried = set()
    for (name, p), region in zip(model.named_parameters(), regions, strict=True):
        if p.requires_grad and (type(region), p.shape) not in tried:
            tried.add((type(region), p.shape))
            g = torch.linspace(-1, 1, p.numel(), dtype=p.dtype, device=p.device).view(p.shape)
            flag = f"--constraint {config.constraint}, parameter {name}"
            with reported(flag):
                _check_region(flag, region, g, config)


def _check_region(flag: str, region: Region, g: Tensor, config: Config) -> None:
    """Try what the training calls, at `g` and at a point far outside."""
    if config.optimizer == "SFW" or config.sfw_init:
        vertex, opposite = (_result(flag, region, "lmo", x) for x in (g, -g))
        if (g * vertex).sum() > 0:
            raise UserError(f"{flag}: lmo(g) gives a v with <g, v> > 0, not the least; {ADVICE}")
        apart = (vertex - opposite).double().norm().item()
        if not apart <= region.diameter * (1 + TOLERANCE):
            raise UserError(
                f"{flag}: lmo gives vertices {apart:.4g} apart, in a region of diameter"
                f" {region.diameter:.4g}; {ADVICE}"
            )
    outside = g * region.diameter if region.diameter < math.inf else g
    _result(flag, region, "shift_inside", outside)
    if config.optimizer == "SGD":
        _result(flag, region, "euclidean_project", outside)


def _result(flag: str, region: Region, method: str, x: Tensor) -> Tensor:
    """What a method of the region returns for `x`: a tensor like it, finite and in the region."""
    y, problem = getattr(region, method)(x), None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        given = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        problem = f"{given} for a tensor of shape {tuple(x.shape)}"
    elif not y.isfinite().all():
        problem = "numbers that are not finite"
    elif region.gauge is not None and not (filled := float(region.gauge(y))) <= 1 + TOLERANCE:
        problem = f"a point outside of the region: its gauge is {filled:.4g}, and at most 1 inside"
    if problem:
        raise UserError(f"{flag}: {method} gives {problem}; {ADVICE}")
    return y


def check_schedule(config: Config, steps: int) -> None:
    """Raise UserError for a schedule that gives no learning rates for epochs of so many steps.

    The first, middle and last epoch are tried, with a training loss that stays the same.
    """
    for epoch in sorted({0, config.epoch_num // 2, config.epoch_num - 1}):
        rates = learning_rates(config, epoch, steps, [1.0] * epoch, UserError)
        if config.optimizer == "SFW" and max(rates) > 1:
            raise UserError(
                f"--lr_scheme {config.lr_scheme}, epoch {epoch + 1}: gives a learning rate of"
                f" {max(rates):.4g}, and SFW takes at most 1; lower it or --lr"
            )


def learning_rates(
    config: Config,
    epoch: int,
    steps: int,
    losses: Sequence[float],
    kind: type[ScriptError] = RunError,
) -> list[float]:
    """The learning rate of each step of an epoch (from 0), after epochs with these mean losses.

    Raises an error of this kind unless the schedule gives a finite multiple for each step.
    """
    flag = f"--lr_scheme {config.lr_scheme}, epoch {epoch + 1}"
    with reported(flag, kind):
        multiples = LR_SCHEMES[config.lr_scheme](epoch, config.epoch_num, steps, losses)
        multiples = [float(multiple) for multiple in multiples]
    if len(multiples) != steps:
        raise kind(f"{flag}: gives {len(multiples)} multiples for {steps} steps; {ADVICE}")
    if wrong := [multiple for multiple in multiples if not 0 <= multiple < math.inf]:
        raise kind(f"{flag}: gives {wrong[0]}: no finite multiple of --lr from 0 on; {ADVICE}")
    rates = warm_up(multiples, epoch * steps, config.warmup_steps)
    return [config.lr * rate for rate in rates]
