"""SFW and ProjectedSGD as PyTorch describes optimizers to tests that know nothing of them."""

from copy import deepcopy

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau, StepLR
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

import optim
from constraints import KSparsePolytope


class MakesRegions:
    """An optimizer called as the generic tests call it: with parameters and options alone."""

    def __init__(self, params, **options):
        super().__init__(params, (), **options)

    def add_param_group(self, group):
        group, params = dict(group), group["params"]
        if not isinstance(params, Tensor | set):
            group["params"] = params = list(params)
        named = [params] if isinstance(params, Tensor) else params
        tensors = [p[1] if isinstance(p, tuple) else p for p in named]
        group["constraints"] = [
            KSparsePolytope(p.numel(), (p.numel() + 1) // 2, radius=3.0) for p in tensors
        ]
        super().add_param_group(group)


class SFW(MakesRegions, optim.SFW):
    pass


class ProjectedSGD(MakesRegions, optim.ProjectedSGD):
    pass


def inputs(*own):
    """Options common to both optimizers, and those of one of them."""
    common = [
        {},
        {"lr": 0.01},
        {"lr": torch.tensor(0.001)},
        {"weight_decay": 0.5},
        {"momentum": 0.0},
        {"weight_decay": 0.1, "maximize": True},
    ]
    every = [{"lr": 0.01} | options for options in (*common, *own)]
    return lambda device, dtype=None: [
        OptimizerInput(params=None, kwargs=deepcopy(kwargs), desc=str(kwargs)) for kwargs in every
    ]


def errors(*own):
    def error_inputs(device, dtype):
        return get_error_inputs_for_all_optims(device, dtype) + [
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs), error_type=ValueError, error_regex=regex
            )
            for kwargs, regex in own
        ]

    return error_inputs


COMMON = dict(
    supports_sparse=False,
    supports_complex=False,
    not_og_supported_flags=(),
    scheduler_inputs=(
        [lambda optimizer: StepLR(optimizer, gamma=0.9, step_size=10)],
        [lambda optimizer: LinearLR(optimizer, start_factor=0.4, end_factor=0.8, total_iters=4)],
        [lambda optimizer: ExponentialLR(optimizer, gamma=0.99), ReduceLROnPlateau],
    ),
)
INFOS = [
    OptimizerInfo(
        SFW,
        optim_inputs_func=inputs({"rescale": "diameter"}, {"rescale": None}),
        optim_error_inputs_func=errors(
            ({"momentum": -0.5}, "momentum .* not -0.5"), ({"lr": 2.0}, "at most 1, not 2.0")
        ),
        supported_impls=("fused",),
        supports_fused_on=("cpu",),
        **COMMON,
    ),
    OptimizerInfo(
        ProjectedSGD,
        optim_inputs_func=inputs(),
        optim_error_inputs_func=errors(({"weight_decay": -1.0}, "weight_decay .* not -1.0")),
        supported_impls=(),
        **COMMON,
    ),
]
