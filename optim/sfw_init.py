"""SFW-Init: initial weights scaled, tensor by tensor, so that the first SFW step helps most."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from constraints import Region

REPORT_EVERY = 10
SCALE_LR = 1e-3
# A scale of a weight tensor stays this far from 0, at which its layer would be dead.
LEAST_SCALE = 0.01

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Report:
    """How far SFW-Init is: iterations done, the last one's loss before and after the SFW step, and
    the smallest, mean and largest scale."""

    iteration: int
    loss_before: float
    loss_after: float
    smallest: float
    mean: float
    largest: float


def sfw_init(
    model: nn.Module,
    batches: Iterable[Batch],
    constraints: Sequence[Region],
    lr: float = 1.0,
    iterations: int = 390,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    report: Callable[[Report], None] | None = None,
) -> dict[str, float]:
    """Multiply each parameter of `model`, in place, by a learned scale (Miao et al., algorithm 3).

    Every iteration draws three of `batches`, pairs (inputs, targets) of half a training batch, and
    takes one SFW step with learning rate `lr` and rescale "gradient" along the gradient on the
    first two. The loss after it, on the first and third, divided by `lr`, is minimised over the
    scales by Adam. Gradients flow through the step and the gradient's norm, not through the LMO's
    choice. `batches` is gone through again and again as need be; `constraints` has one region for
    each of `model.parameters()`, which are shifted into them at the end.

    Returns the scale of each trainable parameter by name; one that the loss does not depend on
    keeps 1. `report` is called every 10 iterations. Buffers, modes, gradients, frozen parameters
    and the global random state stay as they are. Raises ValueError when the constraints do not fit
    or have no LMO, or `batches` is empty, and FloatingPointError when the loss is not finite; the
    model is unchanged then.
    """
    _check(model, constraints, lr, iterations)
    regions = dict(zip((name for name, _ in model.named_parameters()), constraints, strict=True))
    initial = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    scales = {n: torch.ones((), device=p.device, requires_grad=True) for n, p in initial.items()}
    adam = torch.optim.Adam(scales.values(), lr=SCALE_LR)
    supply, losses = _endlessly(batches), []
    with _training_on_copies(model) as buffers:

        def loss_at(weights: dict[str, Tensor], *halves: Batch) -> Tensor:
            inputs, targets = (torch.cat(parts) for parts in zip(*halves, strict=True))
            return loss(functional_call(model, (weights, buffers), (inputs,)), targets)

        for iteration in range(1, iterations + 1):
            shared, first, second = (next(supply) for _ in range(3))
            weights = {name: scale * initial[name] for name, scale in scales.items()}
            before = loss_at(weights, shared, first)
            after = loss_at(_step(weights, before, regions, lr), shared, second)
            _descend(after / lr, scales, adam)
            losses.append(torch.stack([before.detach(), after.detach()]))
            if iteration % REPORT_EVERY == 0 or iteration == iterations:
                latest = _read_back(iteration, losses, scales)
                losses.clear()
                if report is not None:
                    report(latest)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in scales:
                p.copy_(regions[name].shift_inside(scales[name] * p))
    return {name: scale.item() for name, scale in scales.items()}


def _step(
    weights: dict[str, Tensor], loss: Tensor, regions: dict[str, Region], lr: float
) -> dict[str, Tensor]:
    """The weights after one SFW step along the gradient of `loss`, as a function of both."""
    gradients = torch.autograd.grad(loss, weights.values(), create_graph=True, allow_unused=True)
    moved = dict(weights)
    for (name, theta), g in zip(weights.items(), gradients, strict=True):
        if g is not None:
            v = regions[name].lmo(g.detach())
            alpha = lr * g.norm() / (theta - v).norm()
            moved[name] = theta + alpha.clamp(max=1) * (v - theta)
    return moved


def _descend(loss: Tensor, scales: dict[str, Tensor], adam: torch.optim.Adam) -> None:
    """One step of Adam on the scales, with clipped gradients and lower bounds."""
    gradients = torch.autograd.grad(loss, scales.values(), allow_unused=True)
    for scale, gradient in zip(scales.values(), gradients, strict=True):
        scale.grad = None if gradient is None else gradient.clamp(-1, 1)
    adam.step()
    with torch.no_grad():
        for name, scale in scales.items():
            scale.clamp_(min=0.0 if "bias" in name.rpartition(".")[2] else LEAST_SCALE)


def _check(model: nn.Module, constraints: Sequence[Region], lr: float, iterations: int) -> None:
    sizes = [p.numel() for p in model.parameters()]
    if [region.n for region in constraints] != sizes:
        raise ValueError("constraints must have one region, of its size, for each parameter")
    if any(math.isinf(region.diameter) for region in constraints):
        raise ValueError("SFW-Init needs bounded regions: an unconstrained one has no LMO")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("all parameters are frozen: there is nothing to scale")
    if not lr > 0:
        raise ValueError(f"lr must be greater than 0, not {lr}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")


def _endlessly(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, from the start again whenever they end."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches has no more: give a collection, or a long enough iterator")


@contextmanager
def _training_on_copies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The model in training mode, and copies of its buffers; afterwards all is as before."""
    modes = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        model.train()
        try:
            yield {name: buffer.clone() for name, buffer in model.named_buffers()}
        finally:
            for module, mode in modes.items():
                module.training = mode


def _read_back(iteration: int, losses: list[Tensor], scales: dict[str, Tensor]) -> Report:
    """Wait for the device, for the latest losses and scales; they must be finite."""
    values = torch.stack(losses).tolist()
    for i, pair in enumerate(values):
        if not all(map(math.isfinite, pair)):
            at = iteration - len(values) + i + 1
            raise FloatingPointError(
                f"the loss is {pair[0]} before and {pair[1]} after the step of iteration {at}"
            )
    now = torch.stack([scale.detach() for scale in scales.values()])
    before, after = values[-1]
    return Report(
        iteration, before, after, *torch.stack([now.min(), now.mean(), now.max()]).tolist()
    )
