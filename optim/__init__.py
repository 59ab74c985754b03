"""Optimizers over feasible regions, and the schedules that change their learning rate."""

from optim.projected_sgd import ProjectedSGD
from optim.schedules import LR_SCHEMES, warm_up
from optim.sfw import RESCALES, SFW
from optim.sfw_init import sfw_init

__all__ = ["LR_SCHEMES", "RESCALES", "SFW", "ProjectedSGD", "sfw_init", "warm_up"]
