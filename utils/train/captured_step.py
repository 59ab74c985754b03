"""A training step that is captured once in a CUDA graph and then replayed."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from utils.process.errors import reason, warn

# Takes inputs, targets, learning rate, and optionally sparsity and weight; see `train_step`.
Step = Callable[..., Tensor]

# Steps before the capture, in which libraries are loaded, the network is compiled, and the buffers
# that a run keeps are made: none of that can be captured.
WARM_UP = 3


class CapturedStep:
    """`step`, which it is called like, in a CUDA graph for batches of `batch_size` images.

    The host would otherwise issue a thousand operations and more. The first steps, the smaller last
    batch of an epoch, and pruned steps are not captured. If a step cannot be captured, one line
    says why, and all steps are issued by the host.

    A graph holds the addresses of its inputs, of weights, state and gradients: none of them may be
    replaced after the first steps. It keeps the memory of a step to itself.
    """

    def __init__(
        self, step: Step, optimizer: Optimizer, batch_size: int, device: torch.device
    ) -> None:
        self.step, self.optimizer, self.batch_size = step, optimizer, batch_size
        self.lr = torch.zeros((), device=device)
        self.captures, self.steps_before_capture = True, WARM_UP
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self, inputs: Tensor, targets: Tensor, lr: float, sparsity: float = 0, weight: float = 1
    ) -> Tensor:
        self.lr.fill_(lr)
        if not self.captures or len(inputs) != self.batch_size or sparsity or weight != 1:
            return self.step(inputs, targets, self.lr, sparsity, weight)
        if self.steps_before_capture:
            self.steps_before_capture -= 1
            return self._beside(inputs, targets)
        if self.graph is None and not self._capture(inputs, targets):
            return self.step(inputs, targets, self.lr)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.results.clone()

    def _beside(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The step on the stream of the capture, where the memory that it sets up has to be."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = self.step(inputs, targets, self.lr)
        current.wait_stream(self.stream)
        return results

    def _capture(self, inputs: Tensor, targets: Tensor) -> bool:
        """Record the step in a graph, which does not take it; False if that cannot be done."""
        self.inputs, self.targets = inputs.clone(), targets.clone()
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.results = self.step(self.inputs, self.targets, self.lr)
            self.graph = graph
        except RuntimeError as error:
            # The first error is the cause; ending the capture then raises another one.
            cause = reason(error.__context__ or error)
            warn(f"steps are not captured in a CUDA graph, and are slower: {cause}")
            self.captures = False
        return self.captures
