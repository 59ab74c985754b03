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

# Called with a model, inputs, targets and a sparsity: leaves gradients in the model's parameters
# and returns the loss of this batch.
Gradient = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor, sparsity: float = 0.0) -> Tensor:
    """The gradient of the cross-entropy, of the network as it is or pruned to `sparsity`."""
    model.zero_grad()
    with pruned(model, sparsity):
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
    return loss.detach()


def cram_plus(model: nn.Module, inputs: Tensor, targets: Tensor, sparsity: float) -> Tensor:
    """The dense gradient g plus that at TopK(theta + rho g), on the entries that TopK keeps.

    CrAM+ (Peste et al., ICLR 2023) with sparse gradients. It takes two forward and backward passes.
    """
    loss = gradient(model, inputs, targets)
    parameters = [p for p in model.parameters() if p.grad is not None]
    theta = [p.detach().clone() for p in parameters]
    g = [p.grad for p in parameters]
    with torch.no_grad():
        torch._foreach_add_(parameters, g, alpha=CRAM_RHO)
    gradient(model, inputs, targets, sparsity)
    with torch.no_grad():
        torch._foreach_add_([p.grad for p in parameters], g)
        torch._foreach_copy_(parameters, theta)
    return loss


@dataclass(frozen=True)
class Method:
    """One row of the comparison: settings of train_prune.py, a grid of strengths, a gradient."""

    settings: dict[str, Any]
    strengths: tuple[float, ...]
    sparsities: tuple[float, ...] = (0.0,)  # to which the gradient prunes
    gradient: Gradient = gradient
    epochs: float = 1.0  # in units of the comparison's

    def config(self, strength: float, epochs: int) -> Config:
        """The settings of a training, in a comparison of this many epochs."""
        tuned = "weight_decay" if self.settings.get("optimizer") == "SGD" else "tau"
        settings = {"lr_scheme": "cosine", tuned: strength} | self.settings
        return Config(**settings, epoch_num=round(epochs * self.epochs))

    def sparsity(self, step: int, steps: int) -> float:
        """That of a step: one of `sparsities`, always in CrAM+ and else in pruned steps.

        These are --pruned_steps 0.33 of train_prune.py, but that all seeds draw the same.
        """
        prunes = self.gradient is cram_plus or (step >= 2 * steps // 3 and step % 2)
        return random.Random(step).choice(self.sparsities) if prunes else 0.0


def build(config: Config, model: nn.Module, halves: Batches) -> torch.optim.Optimizer:
    """The optimizer; the model is shifted into its regions, and scaled if there is SFW-Init.

    That takes the batches `halves`, half as large as training's.
    """
    regions = feasible_regions(config, model)
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
    "CrAM+ equal compute": Method(SGD, WEIGHT_DECAYS, CRAM_SPARSITIES, cram_plus, epochs=0.5),
    "CrAM+ equal epochs": Method(SGD, WEIGHT_DECAYS[1:], CRAM_SPARSITIES, cram_plus),
    "SGD, pruned steps": Method(SGD, (*WEIGHT_DECAYS[1:], 0.02), SPARSITIES),
    "SFW K-sparse, pruned steps": Method({}, (1.0, *TAUS), SPARSITIES),
    "SFW L2, pruned steps": Method(L2, TAUS[:3], SPARSITIES),
    "SFW as in the paper": Method({"lr_scheme": "dynamic_change"}, (15.0,)),
}
