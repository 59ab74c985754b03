"""SFW-Init: learn a scale for each tensor's initial weights that lowers the loss after a step."""

import functools
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
    takes one SFW step with rescale "gradient" on the first two. The loss after it, on the first and
    third, divided by `lr`, is minimised over the scales by Adam. `batches` is iterated over as
    often as necessary. `constraints` has one region for each of `model.parameters()`, which are
    shifted into them at the end. Activation checkpointing must be off: it recomputes activations
    with the model's own weights instead of the scaled ones, and the scales are then wrong.

    Returns the scale of each trainable parameter by name. `report` is called every 10 iterations
    and at the end. Buffers, modes, gradients, frozen parameters and the global random state stay as
    they are. Raises ValueError when the constraints do not fit or have no LMO, or `batches` is
    empty, and FloatingPointError when the loss is not finite; the model is unchanged then.
    """
    _check(model, constraints, lr, iterations)
    named = zip(model.named_parameters(), constraints, strict=True)
    learned = {name: (p, region) for (name, p), region in named if p.requires_grad}
    with _training_on_copies(model) as buffers:

        def loss_at(weights: Sequence[Tensor], halves: tuple[Batch, Batch]) -> Tensor:
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
    """The scale of each of the named parameters; `loss_at(weights, halves)` is the loss."""
    initial, regions = [p.detach() for p, _ in learned.values()], [r for _, r in learned.values()]
    scales = torch.ones(len(initial), dtype=torch.float32, device=initial[0].device)
    biases = ["bias" in name.rpartition(".")[2] for name in learned]
    least = torch.tensor([0.0 if bias else LEAST_SCALE for bias in biases], device=scales.device)
    adam, losses = torch.optim.Adam([scales], lr=SCALE_LR), []
    for iteration in range(1, iterations + 1):
        shared, first, second = (next(batches) for _ in range(3))
        theta = [(w * s).requires_grad_() for w, s in zip(initial, scales, strict=True)]
        before = loss_at(theta, (shared, first))
        loss_after = functools.partial(loss_at, halves=(shared, second))
        after, slopes = _after_step(theta, initial, before, regions, lr, loss_after)
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
    loss_after: Callable[[Sequence[Tensor]], Tensor],
) -> tuple[Tensor, Tensor]:
    """The loss after an SFW step, and its derivative with respect to the scale of each tensor.

    With L the `loss`, L' the `loss_after`, and eta the `lr`, the step goes from theta = scale x
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
        to_vertex = [r.lmo(g).sub_(t) for r, g, t in zip(regions, gradient, theta, strict=True)]
        gradient_norm, distance = _norms(gradient), _norms(to_vertex)
        alpha = (lr * gradient_norm / distance).clamp_(max=1)
        moved = [torch.addcmul(t, d, a) for t, d, a in zip(theta, to_vertex, alpha, strict=True)]
    after = loss_after([t.requires_grad_() for t in moved])
    gradient_after = torch.autograd.grad(after, moved, materialize_grads=True)
    by_norm = torch.where(alpha < 1, lr * _dots(gradient_after, to_vertex) / distance, 0)
    slope = (by_norm / distance) * (gradient_norm / distance)
    by_distance = torch.where(by_norm == 0, 0, slope) * _dots(to_vertex, initial)
    by_theta = (1 - alpha) * _dots(gradient_after, initial)
    terms = zip(gradient, gradient_norm, by_norm, strict=True)
    return after.detach(), by_theta + by_distance + _by_curvature(terms, theta, initial)


def _by_curvature(
    terms: Iterable[tuple[Tensor, ...]], theta: Sequence[Tensor], initial: Sequence[Tensor]
) -> Tensor | float:
    """The last term of the derivative, from grad L, its norm and s; 0 if the loss is linear."""
    curved = [(g, g.detach() / norm * s) for g, norm, s in terms if g.requires_grad]
    if not curved:
        return 0.0
    gradient, directions = zip(*curved, strict=True)
    hessian = torch.autograd.grad(gradient, theta, directions, materialize_grads=True)
    return _dots(hessian, initial)


def _norms(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm of each tensor, not quite 0."""
    norms = torch.stack([l2_norm(x) for x in tensors])
    return norms.clamp_(min=torch.finfo(norms.dtype).tiny)


def _dots(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """The inner product of each pair."""
    pairs = zip(left, right, strict=True)
    return torch.stack([torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs])


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
    for name, value in (("lr", lr), ("iterations", iterations)):
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, not {value}")


def _endlessly(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, repeated without end."""
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError("batches has no more: give a collection, or a long enough iterator")


@contextmanager
def _training_on_copies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put the model in training mode, and give copies of its buffers; restore all at the end.

    Of the implementations of attention the plain one is used, which alone has second derivatives.
    """
    modes = {module: module.training for module in model.modules()}
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH):
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
    for at, (before, after) in enumerate(values, iteration - len(values) + 1):
        if not (math.isfinite(before) and math.isfinite(after)):
            raise FloatingPointError(
                f"the loss is {before} before and {after} after the step of iteration {at}"
            )
    smallest, mean, largest = torch.stack([scales.min(), scales.mean(), scales.max()]).tolist()
    if not math.isfinite(mean):
        raise FloatingPointError(f"a scale is {mean} after iteration {iteration}")
    return Report(iteration, *values[-1], smallest, mean, largest)
