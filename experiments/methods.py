"""The methods that the proxy compares: how each computes a gradient, and what steps along it.

A method has one regularisation strength, which is tuned: SGD's weight decay, or tau, the size of
SFW's regions. All other settings are the usual ones.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constraints import build_constraints, make_feasible
from optim import SFW, sfw_init
from utils.datasets.batches import Batches
from utils.train.pruned_steps import SPARSITIES, pruned

WEIGHT_DECAYS = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
TAUS = (2.0, 3.5, 6.0, 11.0, 20.0)

# CrAM+ as its authors set it for high sparsities on CIFAR-10.
CRAM_RHO, CRAM_SPARSITIES = 0.15, (0.5, 0.7, 0.8, 0.9, 0.95)


# Called with a model, inputs, targets, the number of this step and that of all steps: leaves
# gradients in the model's parameters and returns the loss of this batch.
Gradient = Callable[[nn.Module, Tensor, Tensor, int, int], Tensor]


def dense_gradient(
    model: nn.Module, inputs: Tensor, targets: Tensor, step: int, steps: int
) -> Tensor:
    """The gradient of the cross-entropy at the weights as they are."""
    model.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    return loss.detach()


def cram_plus_gradient(
    model: nn.Module, inputs: Tensor, targets: Tensor, step: int, steps: int
) -> Tensor:
    """The dense gradient g plus that at TopK(theta + rho g), on the entries that TopK keeps.

    CrAM+ (Peste et al., ICLR 2023) with sparse gradients; the sparsity is drawn anew each step. It
    takes two forward and backward passes.
    """
    loss = dense_gradient(model, inputs, targets, step, steps)
    parameters = [p for p in model.parameters() if p.grad is not None]
    theta = [p.detach().clone() for p in parameters]
    g = [p.grad for p in parameters]
    with torch.no_grad():
        torch._foreach_add_(parameters, g, alpha=CRAM_RHO)
    with pruned(model, random.Random(step).choice(CRAM_SPARSITIES)):
        dense_gradient(model, inputs, targets, step, steps)
    with torch.no_grad():
        torch._foreach_add_([p.grad for p in parameters], g)
        torch._foreach_copy_(parameters, theta)
    return loss


def gradient_with_pruned_steps(
    model: nn.Module, inputs: Tensor, targets: Tensor, step: int, steps: int
) -> Tensor:
    """The dense gradient or, in every second step of the last third, that of a pruned network.

    This is --pruned_steps 0.33 of train_prune.py, but that all seeds draw the same sparsities.
    """
    prunes = step >= 2 * steps // 3 and step % 2
    with pruned(model, random.Random(step).choice(SPARSITIES) if prunes else 0.0):
        return dense_gradient(model, inputs, targets, step, steps)


def sgd(model: nn.Module, weight_decay: float, halves: Batches) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay)


def sfw(
    model: nn.Module,
    tau: float,
    halves: Batches,
    kind: str = "k_sparse_constraints",
    k_frac: float = 0.05,
    init: bool = False,
) -> torch.optim.Optimizer:
    """SFW with regions of this kind, into which the model's weights are shifted.

    With `init` SFW-Init scales them, on the batches `halves`, half as large as training's.
    """
    regions = build_constraints(model, kind, k_frac=k_frac, tau=tau)
    make_feasible(model, regions)
    if init:
        sfw_init(model, halves, regions)
    return SFW(model.parameters(), regions)


@dataclass(frozen=True)
class Method:
    """One row of the comparison; `optimizer` takes the model, a strength and SFW-Init's batches."""

    optimizer: Callable[[nn.Module, float, Batches], torch.optim.Optimizer]
    strengths: tuple[float, ...]
    gradient: Gradient = dense_gradient
    scheme: str = "cosine"
    epochs: float = 1.0  # in units of the comparison's


# To save time, some methods have shorter grids; the best strength must not be at an end that was
# cut.
METHODS = {
    "SGD": Method(sgd, WEIGHT_DECAYS),
    "SFW K-sparse": Method(sfw, TAUS),
    "SFW K-sparse 0.2": Method(partial(sfw, k_frac=0.2), TAUS),
    "SFW L2": Method(partial(sfw, kind="l2_constraints"), TAUS),
    "SFW-Init K-sparse 0.2": Method(partial(sfw, k_frac=0.2, init=True), TAUS[:3]),
    "CrAM+ equal compute": Method(sgd, WEIGHT_DECAYS, cram_plus_gradient, epochs=0.5),
    "CrAM+ equal epochs": Method(sgd, WEIGHT_DECAYS[1:], cram_plus_gradient),
    "SGD, pruned steps": Method(sgd, (*WEIGHT_DECAYS[1:], 0.02), gradient_with_pruned_steps),
    "SFW K-sparse, pruned steps": Method(sfw, (1.0, *TAUS), gradient_with_pruned_steps),
    "SFW L2, pruned steps": Method(
        partial(sfw, kind="l2_constraints"), TAUS[:3], gradient_with_pruned_steps
    ),
    "SFW as in the paper": Method(sfw, (15.0,), scheme="dynamic_change"),
}
