"""A training step as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

# Takes inputs and targets; returns the mean loss and the logits.
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Steps before the capture, in which libraries are loaded, the network is compiled, and the buffers
# that a run keeps are made: none of that can be captured.
WARM_UP = 3


class CapturedStep:
    """A training step on the current device that replays a CUDA graph for batches of `batch_size`.

    One launch then takes the place of a thousand and more, each of which can cost the host more
    than its kernel costs the device. The first steps, and batches of another size, go without. A
    graph holds the learning rates as numbers: it is captured anew when they change. It also holds
    where weights and momentum lie, so that neither is to be replaced after the first capture, and
    keeps the memory of a step to itself. What a call returns is overwritten by the next.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        self.step, self.optimizer, self.batch_size = step, optimizer, batch_size
        self.stream = torch.cuda.Stream()
        self.warm_up = WARM_UP
        self.rates: list[float] = []

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if len(inputs) != self.batch_size:
            return self.step(inputs, targets)
        if self.warm_up:
            self.warm_up -= 1
            return self._beside(inputs, targets)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if rates != self.rates:
            self._capture(inputs, targets)
            self.rates = rates
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.outputs

    def _beside(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The step on the stream of the capture, where what it sets up is to be."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = self.step(inputs, targets)
        current.wait_stream(self.stream)
        return outputs

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        """Record the step, which is not taken by that."""
        # A former graph's memory is to be free before the next's.
        self.graph = self.outputs = None
        self.optimizer.zero_grad()
        self.inputs, self.targets = inputs.clone(), targets.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.outputs = self.step(self.inputs, self.targets)
