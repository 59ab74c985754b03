"""Optimizers that torch.compile does not trace, and that do not import it."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which torch.compile does not trace where it traces the caller.

    torch._disable_dynamo does the same, but imports the compiler, 900 modules, at the first
    call. Before anything has imported it, nothing can be traced.
    """
    refused = torch._disable_dynamo(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return (refused if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return called


class PlainOptimizer(Optimizer):
    """torch.optim.Optimizer, but that making and using one does not import the compiler."""

    add_param_group = not_compiled(inspect.unwrap(Optimizer.add_param_group))
    state_dict = not_compiled(inspect.unwrap(Optimizer.state_dict))
    load_state_dict = not_compiled(inspect.unwrap(Optimizer.load_state_dict))
    zero_grad = not_compiled(inspect.unwrap(Optimizer.zero_grad))
