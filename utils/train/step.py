"""The steps of an epoch, which take nothing from the host; on a GPU they are a CUDA graph."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from models import dry_run
from optim import SFW
from utils.compute.device import network_generator
from utils.datasets.batches import Batches
from utils.process.errors import UserError, warn
from utils.settings.config import Config
from utils.train.distributed import World

# The context in which the network is pruned to a sparsity, or left as it is for 0.
Pruned = Callable[[float], AbstractContextManager[None]]
# Takes inputs, targets and the context for forward and backward pass; trains, and returns the
# batch's mean loss and its logits.
TrainOn = Callable[[Tensor, Tensor, AbstractContextManager[None]], tuple[Tensor, Tensor]]

# What pruned steps prune to.
SPARSITIES = (0.8, 0.9, 0.95, 0.98)

# Steps before the capture, in which libraries are loaded, the network is compiled, and the buffers
# that a run keeps are made: none of that can be captured.
WARM_UP = 3


def check_last_batch(
    model: nn.Module, batches: Batches, image_shape: tuple[int, ...], parts: int = 1
) -> None:
    """Raise UserError where the model cannot train on one image, and there are batches of one.

    BatchNorm refuses it where only one pixel is left. `image_shape` is (channels, height, width),
    and each batch is shared in `parts`.
    """
    count, size = len(batches.images), batches.batch_size
    sizes = [min(size, count), count % size or size]
    if all(n // parts > 1 for n in sizes):
        return
    try:
        dry_run(model, torch.zeros(1, *image_shape, device=batches.images.device), training=True)
    except Exception as error:
        raise UserError(
            f"--train_batchsize {size}: an epoch of {count} images has a batch, or a process's"
            f" part of one, of a single image, on which this network cannot be trained ({error});"
            " choose another size"
        ) from None


def step_seeds(seed: int, epoch: int, rank: int, steps: int) -> list[int]:
    """A seed for each step of an epoch, from which dropout draws, in the process `rank`."""
    return np.random.SeedSequence([seed, epoch, rank]).generate_state(steps).tolist()


def step_sparsities(config: Config, epoch: int, steps: int) -> list[float]:
    """To what the network is pruned in each step of an epoch; 0 where it is not.

    It is in every second step of the last `config.pruned_steps` of the training, to one of
    SPARSITIES.
    """
    # The last number tells this stream from those of `step_seeds`.
    stream = np.random.default_rng([config.seed, epoch, 0, 1])
    drawn = stream.choice(SPARSITIES, steps).tolist()
    total = config.epoch_num * steps
    start = total - round(config.pruned_steps * total)
    numbers = range(epoch * steps, (epoch + 1) * steps)
    return [s if i >= start and i % 2 else 0.0 for i, s in zip(numbers, drawn, strict=True)]


def last_sparsities(config: Config, steps: int) -> list[float]:
    """`step_sparsities` of the last two epochs, or of the only one.

    If there are pruned steps, one is among the last two steps, and so in these epochs.
    """
    epochs = range(max(0, config.epoch_num - 2), config.epoch_num)
    return [sparsity for epoch in epochs for sparsity in step_sparsities(config, epoch, steps)]


class TrainingStep:
    """Draws the next batch of an epoch, trains on it, and records its loss and accuracy.

    What changes from step to step lies on the device: the order of the images, the number of the
    step, the learning rates and the results. On a GPU the whole step, augmentation and optimizer
    included, is therefore captured once in a CUDA graph and replayed, where the host would
    otherwise issue a thousand operations and more. The first steps, pruned steps, and the smaller
    last batch of an epoch are not captured. If a step cannot be captured, one line says why, and
    all steps are issued by the host.

    A graph holds the addresses of weights, state and gradients: none of them may be replaced after
    the first steps. It keeps the memory of a step to itself. Steps of several processes are not
    captured; each draws the whole batch, so that random numbers are those of a single process,
    and trains on its part.
    """

    def __init__(
        self,
        train_on: TrainOn,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        world: World | None = None,
        pruned: Pruned = lambda sparsity: nullcontext(),
    ) -> None:
        device = batches.images.device
        self.pruned = pruned
        self.world = world or World()
        self.train_on, self.batches, self.optimizer = train_on, batches, optimizer
        self.sizes = [
            len(part) for part in torch.arange(len(batches.images)).split(batches.batch_size)
        ]
        self.order = torch.empty(len(batches.images), dtype=torch.int64, device=device)
        self.places = torch.arange(batches.batch_size, device=device)
        self.next = torch.zeros((), dtype=torch.int64, device=device)  # the step's number
        # By step: the mean loss, how many images were classified correctly and, of SFW, mean alpha.
        self.results = torch.zeros(len(self.sizes), 3, device=device)
        self.rates = torch.zeros(len(self.sizes), device=device)
        self.lr = torch.zeros((), device=device)
        self.captures = device.type == "cuda" and self.world.size == 1
        self.steps_before_capture = WARM_UP
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(device) if self.captures else None

    def begin_epoch(
        self,
        order: Tensor,
        rates: Sequence[float],
        done: int,
        seeds: Sequence[int] | None = None,
        sparsities: Sequence[float] | None = None,
    ) -> None:
        """Set the order of the images, the learning rate of each step, and how many are done.

        With `seeds`, one for each step, PyTorch's own generator is seeded before it: so the step
        draws the same dropout in a resumed run. A step whose number in `sparsities` is not 0 is a
        pruned step: `pruned` makes the context in which the network is pruned to it.
        """
        self.order.copy_(order)
        self.rates.copy_(torch.tensor(rates))
        self.next.fill_(done)
        self.host_rates, self.done, self.seeds = rates, done, seeds
        self.sparsities = sparsities or [0.0] * len(rates)

    def __call__(self) -> None:
        """Take the next step of the epoch."""
        size, sparsity = self.sizes[self.done], self.sparsities[self.done]
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr if self.captures else self.host_rates[self.done]
        if self.seeds is not None:
            network_generator(self.order.device).manual_seed(self.seeds[self.done])
        self.done += 1
        if not self.captures or size != self.batches.batch_size or sparsity:
            self._step(size, sparsity)
        elif self.steps_before_capture:
            self.steps_before_capture -= 1
            self._step_beside(size)
        else:
            if self.graph is None:
                self._capture(size)
            self.graph.replay() if self.graph is not None else self._step(size)

    def _step(self, size: int, sparsity: float = 0.0) -> None:
        """One step on a batch of `size` images, in operations that do not wait for the device."""
        index = self.next.view(1)
        self.lr.copy_(self.rates.gather(0, index).view(()))
        chosen = self.order.gather(0, self.places[:size] + index * self.batches.batch_size)
        inputs, targets = self.world.share(*self.batches.take(chosen))
        loss, logits = self.train_on(inputs, targets, self.pruned(sparsity))
        correct = (logits.argmax(1) == targets).sum()
        sfw = isinstance(self.optimizer, SFW)
        alpha = self.optimizer.mean_alpha() if sfw else torch.zeros_like(loss, dtype=torch.float32)
        result = self.world.weigh(torch.stack([loss.float(), correct.float(), alpha]))
        self.results.index_copy_(0, index, result.view(1, 3))
        self.next.add_(1)

    def _step_beside(self, size: int) -> None:
        """The step on the stream of the capture, where the memory that it sets up has to be."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self._step(size)
        current.wait_stream(self.stream)

    def _capture(self, size: int) -> None:
        """Record the step in a graph, which does not take it; or give up capturing."""
        graph = torch.cuda.CUDAGraph()
        if self.batches.generator is not None:
            graph.register_generator_state(self.batches.generator)
        self.optimizer.zero_grad()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self._step(size)
            self.graph = graph
        except RuntimeError as error:
            # The first error is the cause; ending the capture then raises another one.
            cause = error.__context__ or error
            reason = str(cause).strip().partition("\n")[0]
            warn(f"steps are not captured in a CUDA graph, and are slower: {reason}")
            self.captures = False
