"""What is measured of a network: accuracy, zeros, magnitudes, and whether all is finite."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from utils.compute.device import autocast

# Magnitudes above which entries are counted.
THRESHOLDS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
# Histograms of log10 of magnitude.
BINS_PER_DECADE = 10
SMALLEST_DECADE = -10


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "fp32"
) -> float:
    """The percentage of inputs that the model, in evaluation mode, classifies correctly.

    `batches` yields (inputs, targets) on the model's device, at least one. An input with an output
    that is infinite or not a number counts as wrong.
    """
    correct, count = count_correct(model, batches, precision)
    return 100 * correct / count


@torch.no_grad()
def count_correct(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "fp32"
) -> tuple[int, int]:
    """How many inputs the model, in evaluation mode, classifies correctly, and how many there are.

    `batches` is as for `evaluate`, and may be empty.
    """
    model.eval()
    device = next(model.parameters()).device
    correct, count = torch.zeros((), dtype=torch.int64, device=device), 0
    with autocast(device, precision):
        for inputs, targets in batches:
            logits = model(inputs)
            correct += ((logits.argmax(1) == targets) & logits.isfinite().all(1)).sum()
            count += len(targets)
    return int(correct), count


@torch.no_grad()
def evaluation_batch_size(model: nn.Module, images: Tensor, smallest: int) -> int:
    """How many of `images` (count, channels, side, side) to evaluate at a time on their device.

    On a CPU `smallest`, since larger batches are no faster there. On a GPU, where they are, as many
    as a quarter of the free memory takes, judged by a batch of `smallest` in fp32.
    """
    if not images.is_cuda:
        return smallest
    model.eval()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(images[:smallest].float())
    per_image = (torch.cuda.max_memory_allocated() - before) / min(smallest, len(images))
    free, _ = torch.cuda.mem_get_info()
    return min(max(smallest, int(free / 4 / max(per_image, 1))), len(images))


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Let layers run operation by operation: FlopCounterMode does not see inside fused kernels."""
    libraries = (torch.backends.mkldnn, torch.backends.cudnn)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    enabled = [library.enabled for library in libraries]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for library, was in zip(libraries, enabled, strict=True):
            library.enabled = was


@torch.no_grad()
def multiply_adds(model: nn.Module, inputs: Tensor) -> int:
    """The multiply-adds that convolutions and matrix products of a forward pass take per input."""
    with _plain_kernels(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // (2 * len(inputs))


def channels_by_layer(model: nn.Module) -> dict[str, int]:
    """The number of output channels of each convolution and linear layer, by its name."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}
    return {
        n: m.out_features if isinstance(m, nn.Linear) else m.out_channels for n, m in layers.items()
    }


def zeros_by_parameter(model: nn.Module) -> dict[str, int]:
    """How many entries of each of the model's parameters are exactly 0."""
    names, counts = zip(
        *((name, (p == 0).sum()) for name, p in model.named_parameters()), strict=True
    )
    return dict(zip(names, torch.stack(counts).tolist(), strict=True))


def not_finite(model: nn.Module) -> list[str]:
    """The names of the parameters that hold an infinite entry or one that is not a number."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    finite = torch.stack([p.isfinite().all() for p in parameters]).tolist()
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]


def count_above(model: nn.Module, thresholds: tuple[float, ...] = THRESHOLDS) -> list[int]:
    """For each threshold, how many entries of `model.parameters()` are greater in magnitude."""
    counts = torch.stack([_count_above(p.detach(), thresholds) for p in model.parameters()])
    return counts.sum(0).tolist()


def log_magnitudes(values: Tensor) -> Tensor:
    """log10 of the magnitudes of the finite entries but zeros, in one dimension.

    It is at least SMALLEST_DECADE, which stands for all smaller ones, too.
    """
    magnitude = values.detach().float().abs()
    present = magnitude[(magnitude > 0) & magnitude.isfinite()]
    return present.log10().clamp(min=SMALLEST_DECADE)


def _count_above(values: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    magnitude = values.abs()
    return torch.stack([(magnitude > threshold).sum() for threshold in thresholds])
