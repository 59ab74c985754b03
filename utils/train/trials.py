"""What is tried before a training: regions and schedules, batches and pruned steps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from constraints import Region, build_constraints, make_feasible
from models.check import describe_error, dry_run
from optim import LR_SCHEMES, warm_up
from utils.datasets.batches import Batches
from utils.process.errors import RunError, ScriptError, UserError
from utils.settings.config import Config
from utils.train.pruned_steps import step_sparsities

# Sums over millions of float32 entries are not exact, and a wrong region is wrong by more.
TOLERANCE = 0.01
ADVICE = "see docs/own_regions.md"
Kind = type[ScriptError]


@contextmanager
def reported(flag: str, kind: Kind = UserError) -> Iterator[None]:
    """Raise any error of the block as one of this kind, which names the flag and the line."""
    try:
        yield
    except (ScriptError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise kind(f"{flag}: {describe_error(error)}; {ADVICE}") from error


def feasible_regions(config: Config, model: nn.Module) -> list[Region]:
    """A region for each of `model.parameters()`, which are shifted into them.

    Raises UserError unless each region is found right, and for values that are not finite.
    """
    sizes = config.k_sparseness, config.k_frac, config.tau, config.mode
    with reported(f"--constraint {config.constraint}"):
        regions = build_constraints(model, config.constraint, *sizes)
    check_regions(config, model, regions)
    try:
        make_feasible(model, regions)
    except ValueError as error:
        raise UserError(f"--arch {config.arch}: {error}") from None
    return regions


@torch.no_grad()
def check_regions(config: Config, model: nn.Module, regions: Sequence[Region]) -> None:
    """Raise UserError for a region that returns what is not in it, or is of another shape.

    There is one for each of `model.parameters()`. Of those of one kind and shape one is tried with
    what the training calls: the LMO at a gradient from -1 to 1, the others far outside.
    """
    methods = ["shift_inside"] + ["euclidean_project"] * (config.optimizer == "SGD")
    methods += ["lmo"] * (config.optimizer == "SFW" or bool(config.sfw_init))
    tried = set()
    for (name, p), region in zip(model.named_parameters(), regions, strict=True):
        if not p.requires_grad or (type(region), p.shape) in tried:
            continue
        tried.add((type(region), p.shape))
        flag = f"--constraint {config.constraint}, parameter {name}"
        with reported(flag):
            if problem := _problem_of(region, p, methods):
                raise UserError(f"{flag}: {problem}; {ADVICE}")


def _problem_of(region: Region, p: Tensor, methods: Sequence[str]) -> str | None:
    """What is wrong with the region of a parameter, by these of its methods, or None."""
    if region.describe()["n"] != p.numel():  # also needs the radius, as a state dict does
        return f"n is {region.n}, and the parameter has {p.numel()} entries"
    g = torch.linspace(-1, 1, p.numel(), dtype=p.dtype, device=p.device).view(p.shape)
    outside = g * region.diameter if region.diameter < math.inf else g
    for method in methods:
        given = g if method == "lmo" else outside
        y = getattr(region, method)(x := given.clone())
        if not x.equal(given):
            return f"{method} changes what it is given"
        if not isinstance(y, Tensor) or y.shape != x.shape:
            given = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            return f"{method} gives {given} for a tensor of shape {tuple(x.shape)}"
        if not y.isfinite().all():
            return f"{method} gives numbers that are not finite"
        filled = 0.0 if region.gauge is None else float(region.gauge(y))
        if not filled <= 1 + TOLERANCE:
            return f"{method} gives a point of gauge {filled:.4g}, and not at most 1"
    if "lmo" not in methods:  # which is the last
        return None
    if y.dtype != g.dtype:
        return f"lmo gives {y.dtype} for a tensor of {g.dtype}"
    if (g * y).sum() > 0:
        return "lmo(g) gives a v with <g, v> > 0"
    apart = (y - region.lmo(-g)).double().norm().item()  # all that tells of one without a gauge
    if apart <= region.diameter * (1 + TOLERANCE):
        return None
    return f"lmo gives vertices {apart:.4g} apart, in a region of diameter {region.diameter:.4g}"


def check_steps(config: Config, model: nn.Module, batches: Batches, parts: int) -> None:
    """Raise UserError where a step of the training cannot be taken, or no pruned one ever is.

    Each batch is shared in `parts`. BatchNorm refuses one of a single image where only one pixel is
    left. With --sync_bn, which normalises over all parts, none may be without images.
    """
    count, size, steps = len(batches.images), batches.batch_size, len(batches)
    smallest = count % size or size  # the last batch
    if config.sync_bn and smallest < parts:
        raise UserError(
            f"--sync_bn: the last batch of an epoch has {smallest} images for {parts} processes;"
            " choose another --train_batchsize"
        )
    if smallest // (1 if config.sync_bn else parts) < 2:
        image = torch.zeros(1, *config.image_shape, device=batches.images.device)
        try:
            dry_run(model, image, training=True)
        except Exception as error:
            raise UserError(
                f"--train_batchsize {size}: an epoch of {count} images has a batch, or a process's"
                f" part of one, of a single image, on which this network cannot be trained"
                f" ({error}); choose another size"
            ) from None
    # If there are pruned steps, one is among the last two steps, and so in these epochs.
    epochs = range(max(0, config.epoch_num - 2), config.epoch_num)
    if config.pruned_steps and not any(sum(step_sparsities(config, e, steps)) for e in epochs):
        raise UserError(
            "--pruned_steps: no step of this training is a pruned one; give a larger fraction or"
            " more epochs"
        )
    check_schedule(config, steps)


def check_schedule(config: Config, steps: int) -> None:
    """Try the schedule on the first, middle and last epoch; raises UserError where it is wrong."""
    for epoch in sorted({0, config.epoch_num // 2, config.epoch_num - 1}):
        rates = learning_rates(config, epoch, steps, [1.0] * epoch, UserError)
        if config.optimizer == "SFW" and max(rates) > 1:
            raise UserError(
                f"--lr_scheme {config.lr_scheme}, epoch {epoch + 1}: gives a learning rate of"
                f" {max(rates):.4g}, and SFW takes at most 1; lower it or --lr"
            )


def learning_rates(
    config: Config, epoch: int, steps: int, losses: Sequence[float], kind: Kind = RunError
) -> list[float]:
    """The learning rate of each step of an epoch (from 0), after epochs with these mean losses.

    Raises an error of this kind unless the schedule gives a finite multiple for each step.
    """
    flag = f"--lr_scheme {config.lr_scheme}, epoch {epoch + 1}"
    with reported(flag, kind):
        multiples = LR_SCHEMES[config.lr_scheme](epoch, config.epoch_num, steps, losses)
        multiples = [float(multiple) for multiple in multiples]
    if len(multiples) != steps or not all(0 <= multiple < math.inf for multiple in multiples):
        raise kind(
            f"{flag}: gives {multiples[:3]} ..., and not a finite multiple of --lr, at least 0, for"
            f" each of {steps} steps; {ADVICE}"
        )
    return [config.lr * rate for rate in warm_up(multiples, epoch * steps, config.warmup_steps)]
