"""Optimizers over feasible regions, and the schemes that change their learning rate."""

from optim.projected_sgd import ProjectedSGD
from optim.schemes import LR_SCHEMES
from optim.sfw import RESCALES, SFW
from optim.sfw_init import sfw_init

__all__ = ["LR_SCHEMES", "RESCALES", "SFW", "ProjectedSGD", "sfw_init"]
