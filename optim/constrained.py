"""What optimizers over feasible regions have in common: a region bound to each parameter."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from constraints import Region


class ConstrainedOptimizer(Optimizer):
    """A torch.optim.Optimizer whose every parameter has a region of its own.

    `params` is what any PyTorch optimizer takes, tensors or groups of them; `constraints` holds
    their regions in the same order. Raises ValueError when their numbers or sizes differ.
    """

    def __init__(
        self,
        params: Iterable[Any],
        constraints: Sequence[Region],
        defaults: dict[str, Any],
    ) -> None:
        self._regions: dict[Tensor, Region] = {}
        self._unbound = list(constraints)
        super().__init__(params, defaults)
        if self._unbound:
            bound, given = len(self._regions), len(self._regions) + len(self._unbound)
            raise ValueError(f"{given} constraints were given for {bound} parameters")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_regions": self._regions, "_unbound": []}

    def add_param_group(self, group: dict[str, Any]) -> None:
        """As in PyTorch; in a group added later, "constraints" holds its parameters' regions."""
        own = group.pop("constraints", None)
        super().add_param_group(group)
        group = self.param_groups[-1]
        try:
            self._bind(group["params"], self._unbound if own is None else list(own))
            if own is not None and len(own) != len(group["params"]):
                raise ValueError(f"{len(own)} constraints for {len(group['params'])} parameters")
            self._check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise

    def _bind(self, params: list[Tensor], regions: list[Region]) -> None:
        """Give each parameter the next of `regions`, which are used up."""
        for p in params:
            if not regions:
                raise ValueError("there are fewer constraints than parameters")
            region = regions.pop(0)
            if region.n != p.numel():
                raise ValueError(
                    f"constraint {len(self._regions)} has {region.n} entries,"
                    f" its parameter {p.numel()}"
                )
            self._regions[p] = region

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError, with the value, for a setting that the optimizer cannot work with."""
        if not group["lr"] > 0:
            raise ValueError(f"lr must be greater than 0, not {group['lr']}")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must be in 0 <= momentum < 1, not {group['momentum']}")
        if not group["weight_decay"] >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {group['weight_decay']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; returns the closure's loss, if there is one.

        Nothing in a step makes the host wait for the device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, self._regions[p], group)
        return loss

    @abstractmethod
    def _update(self, p: Tensor, region: Region, group: dict[str, Any]) -> None:
        """Move `p`, in place, by one step along its gradient and weight decay."""


def decayed_gradient(p: Tensor, group: dict[str, Any]) -> Tensor:
    """The gradient of `p` with its weight decay."""
    decay = group["weight_decay"]
    return p.grad.add(p, alpha=decay) if decay else p.grad
