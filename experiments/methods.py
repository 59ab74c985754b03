"""The methods that the proxy compares: how each computes a gradient, and what steps along it.

A method has one regularisation strength, which is tuned: SGD's weight decay, or tau, the size of
SFW's regions. All other settings are the usual ones.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constraints import make_feasible
from optim import sfw_init
from train_prune import build_optimizer
from utils.datasets.batches import Batches
from utils.settings.config import Config
from utils.train.pruned_steps import SPARSITIES, pruned
from utils.train.trials import feasible_regions

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


@dataclass(frozen=True)
class Method:
    """One row of the comparison: settings of train_prune.py, a grid of strengths, a gradient."""

    settings: dict[str, Any]
    strengths: tuple[float, ...]
    gradient: Gradient = dense_gradient
    epochs: float = 1.0  # in units of the comparison's

    def config(self, strength: float, epochs: int) -> Config:
        """The settings of a training, in a comparison of this many epochs."""
        tuned = "weight_decay" if self.settings.get("optimizer") == "SGD" else "tau"
        settings = {"lr_scheme": "cosine", tuned: strength} | self.settings
        return Config(**settings, epoch_num=round(epochs * self.epochs))


def build(config: Config, model: nn.Module, halves: Batches) -> torch.optim.Optimizer:
    """The optimizer; the model is shifted into its regions, and scaled if there is SFW-Init.

    That takes the batches `halves`, half as large as training's.
    """
    regions = feasible_regions(config, model)
    make_feasible(model, regions)
    if config.sfw_init:
        sfw_init(model, halves, regions)
    return build_optimizer(config, model, regions)


SGD, L2 = {"optimizer": "SGD"}, {"constraint": "l2_constraints"}
# To save time, some methods have shorter grids; the best strength must not be at an end that was
# cut.
METHODS = {
    "SGD": Method(SGD, WEIGHT_DECAYS),
    "SFW K-sparse": Method({}, TAUS),
    "SFW K-sparse 0.2": Method({"k_frac": 0.2}, TAUS),
    "SFW L2": Method(L2, TAUS),
    "SFW-Init K-sparse 0.2": Method({"k_frac": 0.2, "sfw_init": 1}, TAUS[:3]),
    "CrAM+ equal compute": Method(SGD, WEIGHT_DECAYS, cram_plus_gradient, epochs=0.5),
    "CrAM+ equal epochs": Method(SGD, WEIGHT_DECAYS[1:], cram_plus_gradient),
    "SGD, pruned steps": Method(SGD, (*WEIGHT_DECAYS[1:], 0.02), gradient_with_pruned_steps),
    "SFW K-sparse, pruned steps": Method({}, (1.0, *TAUS), gradient_with_pruned_steps),
    "SFW L2, pruned steps": Method(L2, TAUS[:3], gradient_with_pruned_steps),
    "SFW as in the paper": Method({"lr_scheme": "dynamic_change"}, (15.0,)),
}
