"""What an optimizer over feasible regions gives to the code that takes its steps."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from constraints import Region


@dataclass(slots=True)
class TensorStep:
    """One parameter's part in a step.

    `theta` is what moves: the parameter, or its float32 copy if the parameter has fewer digits.
    `gradient`, whose sign is such that the step descends, and `momentum_buffer` have the shape and
    type of `theta`. `momentum` is 0 at the parameter's first step, so that the buffer becomes the
    gradient, and the group's value after that. `group` holds the other options.
    """

    param: Tensor
    theta: Tensor
    gradient: Tensor
    momentum_buffer: Tensor
    momentum: float
    region: Region
    group: dict[str, Any]
    alpha: float | Tensor | None = None  # of SFW, once the step is taken

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.theta, self.gradient, self.momentum_buffer
