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
        own = group.get("constraints")
        super().add_param_group({k: v for k, v in group.items() if k != "constraints"})
        added = self.param_groups[-1]
        params, given = added["params"], self._unbound if own is None else list(own)
        try:
            if len(given) < len(params):
                raise ValueError("there are fewer constraints than parameters")
            if own is not None and len(given) > len(params):
                raise ValueError(f"{len(given)} constraints for {len(params)} parameters")
            regions = given[: len(params)]
            for i, (p, region) in enumerate(zip(params, regions, strict=True), len(self._regions)):
                if region.n != p.numel():
                    raise ValueError(
                        f"constraint {i} has {region.n} entries, its parameter {p.numel()}"
                    )
            self._check_group(added, regions)
        except ValueError:
            self.param_groups.pop()
            raise
        self._regions.update(zip(params, regions, strict=True))
        del given[: len(params)]

    def _check_group(self, group: dict[str, Any], regions: Sequence[Region]) -> None:
        """Raise ValueError, with the value, for what the optimizer cannot work with."""
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
