"""SFW-Init: learn a scale for each tensor's initial weights that lowers the loss after a step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from constraints import Region
from constraints.sharding import is_sharded
from constraints.tensors import l2_norm

REPORT_EVERY = 10
SCALE_LR = 1e-3
# A scale of a weight tensor stays this far from 0, at which its layer would be dead.
LEAST_SCALE = 0.01

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Report:
    """The progress of SFW-Init: the number of iterations done; the loss before and after the SFW
    step of the last one; the smallest, mean and largest scale."""

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
    choice. `batches` is iterated over as often as necessary. `constraints` has one region for each
    of `model.parameters()`, which are shifted into them at the end.

    Returns the scale of each trainable parameter by name; it stays 1 for a parameter that the loss
    does not depend on. `report` is called every 10 iterations and at the end. Buffers, modes,
    gradients, frozen parameters and the global random state stay as they are. Raises ValueError
    when the constraints do not fit or have no LMO, or `batches` is empty, and FloatingPointError
    when the loss is not finite; the model is unchanged then. The second derivatives of a function
    marked `once_differentiable` count as 0. Activation checkpointing must be off: it recomputes
    activations with the model's own weights instead of the scaled ones, and the scales are then
    wrong.
    """
    _check(model, constraints, lr, iterations)
    named = zip(model.named_parameters(), constraints, strict=True)
    learned = {name: (p, region) for (name, p), region in named if p.requires_grad}
    with _training_on_copies(model) as buffers:

        def loss_at(weights: Sequence[Tensor], *halves: Batch) -> Tensor:
            inputs, targets = (torch.cat(parts) for parts in zip(*halves, strict=True))
            state = dict(zip(learned, weights, strict=True)), buffers
            return loss(functional_call(model, state, (inputs,)), targets)

        scales = _learned_scales(learned, _endlessly(batches), loss_at, lr, iterations, report)
    with torch.no_grad():
        for (p, region), scale in zip(learned.values(), scales, strict=True):
            p.copy_(region.shift_inside(scale * p))
    return dict(zip(learned, scales.tolist(), strict=True))


def _learned_scales(
    learned: dict[str, tuple[nn.Parameter, Region]],
    batches: Iterator[Batch],
    loss_at: Callable[..., Tensor],
    lr: float,
    iterations: int,
    report: Callable[[Report], None] | None,
) -> Tensor:
    """The scale of each of the named parameters; `loss_at(weights, *halves)` is the loss."""
    initial, regions = [p.detach() for p, _ in learned.values()], [r for _, r in learned.values()]
    scales = torch.ones(len(initial), dtype=torch.float32, device=initial[0].device)
    least = torch.tensor([_least_scale(name) for name in learned], device=scales.device)
    adam, losses = torch.optim.Adam([scales], lr=SCALE_LR), []
    for iteration in range(1, iterations + 1):
        shared, first, second = (next(batches) for _ in range(3))
        theta = [(w * s).requires_grad_() for w, s in zip(initial, scales, strict=True)]
        before = loss_at(theta, shared, first)
        halves = shared, second
        after, slopes = _after_step(theta, initial, before, regions, lr, loss_at, halves)
        scales.grad = (slopes.to(scales) / lr).clamp_(-1, 1)
        adam.step()
        torch.maximum(scales, least, out=scales)
        losses.append(torch.stack([before.detach(), after]))
        if iteration % REPORT_EVERY == 0 or iteration == iterations:
            latest = _read_back(iteration, losses, scales)
            losses.clear()
            if report is not None:
                report(latest)
    return scales


def _after_step(
    theta: Sequence[Tensor],
    initial: Sequence[Tensor],
    loss: Tensor,
    regions: Sequence[Region],
    lr: float,
    loss_at: Callable[..., Tensor],
    halves: tuple[Batch, Batch],
) -> tuple[Tensor, Tensor]:
    """The loss after an SFW step, and its derivative with respect to the scale of each tensor.

    With L the `loss`, L' that on `halves`, and eta the `lr`, the step goes from theta = scale x
    initial to

        theta' = theta + alpha (v - theta),  alpha = min(eta ||grad L|| / ||v - theta||, 1),

    and the derivative is the inner product of `initial` with the gradient of L'(theta') by theta:

        (1 - alpha) grad L'(theta')                                     by theta itself
        + s / ||v - theta||^2 ||grad L|| (v - theta)                    by ||v - theta|| in alpha
        + H (s / ||grad L|| grad L),                                    by ||grad L|| in alpha

    where H is the Hessian of L, and s = eta <grad L'(theta'), v - theta> / ||v - theta|| is the
    derivative by ||grad L||; it is 0 where alpha is cut to 1. This is written out because autograd
    would go over the weights many times more.
    """
    gradient = torch.autograd.grad(loss, theta, create_graph=True, materialize_grads=True)
    with torch.no_grad():
        to_vertex = [
            region.lmo(g).sub_(t) for region, g, t in zip(regions, gradient, theta, strict=True)
        ]
        gradient_norm, distance = _norms(gradient), _norms(to_vertex)
        alpha = (lr * gradient_norm / distance).clamp_(max=1)
        moved = [torch.addcmul(t, d, a) for t, d, a in zip(theta, to_vertex, alpha, strict=True)]
    after = loss_at([t.requires_grad_() for t in moved], *halves)
    gradient_after = torch.autograd.grad(after, moved, materialize_grads=True)
    by_norm = torch.where(alpha < 1, lr * _dots(gradient_after, to_vertex) / distance, 0)
    by_distance = torch.where(
        by_norm == 0, 0, (by_norm / distance) * (gradient_norm / distance)
    ) * _dots(to_vertex, initial)
    slopes = (1 - alpha) * _dots(gradient_after, initial) + by_distance
    terms = zip(gradient, by_norm, gradient_norm, strict=True)
    curved = [(g, g.detach() / norm * s) for g, s, norm in terms if g.requires_grad]
    if curved:  # unless the loss is linear
        outputs, directions = zip(*curved, strict=True)
        hessian = torch.autograd.grad(outputs, theta, directions, materialize_grads=True)
        slopes += _dots(hessian, initial)
    return after.detach(), slopes


def _norms(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm of each tensor, not quite 0."""
    norms = torch.stack([l2_norm(x) for x in tensors])
    return norms.clamp_(min=torch.finfo(norms.dtype).tiny)


def _dots(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """The inner product of each pair."""
    pairs = zip(left, right, strict=True)
    return torch.stack([torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs])


def _least_scale(name: str) -> float:
    return 0.0 if "bias" in name.rpartition(".")[2] else LEAST_SCALE


def _check(model: nn.Module, constraints: Sequence[Region], lr: float, iterations: int) -> None:
    sizes = [p.numel() for p in model.parameters()]
    if [region.n for region in constraints] != sizes:
        raise ValueError("constraints must have one region, of its size, for each parameter")
    if any(map(is_sharded, model.parameters())):
        raise ValueError("SFW-Init needs whole parameters: run it before fully_shard")
    if any(math.isinf(region.diameter) for region in constraints):
        raise ValueError("SFW-Init needs bounded regions: an unconstrained one has no LMO")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("all parameters are frozen: there is nothing to scale")
    if not lr > 0:
        raise ValueError(f"lr must be greater than 0, not {lr}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")


def _endlessly(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, repeated without end."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches has no more: give a collection, or a long enough iterator")


@contextmanager
def _training_on_copies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put the model in training mode, and give copies of its buffers; restore all at the end.

    Of the implementations of attention the plain one is used, which alone has second derivatives.
    """
    modes = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    forked = torch.random.fork_rng(devices=[device.index for device in devices])
    with forked, sdpa_kernel(SDPBackend.MATH):
        model.train()
        try:
            yield {name: buffer.clone() for name, buffer in model.named_buffers()}
        finally:
            for module, mode in modes.items():
                module.training = mode


def _read_back(iteration: int, losses: list[Tensor], scales: Tensor) -> Report:
    """Read the latest losses and scales back from the device; raises FloatingPointError if they are
    not finite."""
    values = torch.stack(losses).tolist()
    for i, pair in enumerate(values):
        if not all(map(math.isfinite, pair)):
            at = iteration - len(values) + i + 1
            raise FloatingPointError(
                f"the loss is {pair[0]} before and {pair[1]} after the step of iteration {at}"
            )
    smallest, mean, largest = torch.stack([scales.min(), scales.mean(), scales.max()]).tolist()
    if not math.isfinite(mean):
        raise FloatingPointError(f"a scale is {mean} after iteration {iteration}")
    return Report(iteration, *values[-1], smallest, mean, largest)
