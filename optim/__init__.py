"""Optimizers over feasible regions, and the schemes that change their learning rate."""

from optim.initialisation import sfw_init
from optim.projected_sgd import ProjectedSGD
from optim.schemes import LR_SCHEMES, warm_up
from optim.sfw import RESCALES, SFW

__all__ = ["LR_SCHEMES", "RESCALES", "SFW", "ProjectedSGD", "sfw_init", "warm_up"]
