"""What is measured of a network: accuracy, zeros, magnitudes, and whether all is finite."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook

from utils.compute.device import autocast

# Magnitudes above which entries are counted.
THRESHOLDS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
# Histograms of log10 of magnitude.
BINS_PER_DECADE = 10
SMALLEST_DECADE = -10


@dataclass(frozen=True)
class Accuracy:
    """The percentage of images that a network classifies correctly.

    Images with an output that is infinite or not a number count as wrong. `not_finite` is how many
    there are, and `layer` the first layer with such an output, if it is known. Where all images are
    such ones, there is no accuracy, and `percent` is None.
    """

    percent: float | None
    not_finite: int = 0
    layer: str | None = None


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "fp32"
) -> Accuracy:
    """The accuracy in evaluation mode; `batches` yields (inputs, targets) on the model's device."""
    counts = count_by_batch(model, batches, precision)
    correct, not_finite, count = counts.sum(0).tolist()
    if not not_finite:
        return Accuracy(100 * correct / count)
    inputs, _ = next(islice(batches, int(counts[:, 1].argmax()), None))
    layer = _first_not_finite(model, inputs, precision)
    return Accuracy(100 * correct / count if not_finite < count else None, not_finite, layer)


@torch.no_grad()
def count_by_batch(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str
) -> Tensor:
    """By batch, (batches, 3): inputs classified correctly, those not finite, all; on the CPU."""
    model.eval()
    device, counts = next(model.parameters()).device, []
    with autocast(device, precision):
        for inputs, targets in batches:
            logits = model(inputs)
            finite = logits.isfinite().all(1)
            correct = (logits.argmax(1) == targets) & finite
            counts.append(torch.stack([correct, ~finite, torch.ones_like(finite)]).sum(1))
    return torch.stack(counts).cpu() if counts else torch.zeros(0, 3, dtype=torch.int64)


@torch.no_grad()
def _first_not_finite(model: nn.Module, inputs: Tensor, precision: str) -> str | None:
    """The first layer with an output that is not finite; None if it is of the network itself."""
    # A computed weight is of the layer whose `parametrizations` compute it.
    names = {m: name.partition(".parametrizations")[0] for name, m in model.named_modules()}
    found: list[str | None] = []

    def note(module: nn.Module, _inputs: object, outputs: object) -> None:
        parts = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        if not all(part.isfinite().all() for part in parts if isinstance(part, Tensor)):
            found.append(names.get(module))

    with register_module_forward_hook(note), autocast(inputs.device, precision):
        model(inputs)
    return next(filter(None, found), None)


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
def plain_kernels() -> Iterator[None]:
    """Let layers run operation by operation: FlopCounterMode does not see inside fused kernels."""
    mha = torch.backends.mha
    with ExitStack() as undo:
        undo.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        for library in (torch.backends.mkldnn, torch.backends.cudnn):
            undo.callback(setattr, library, "enabled", library.enabled)
            library.enabled = False
        yield


@torch.no_grad()
def multiply_adds(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """What convolutions and matrix products of a forward pass take per input, by module.

    "" is the whole network; modules that take none are left out.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with plain_kernels(), FlopCounterMode(display=False) as counter:
        model(inputs)
    counts = {"": counter.get_total_flops()}
    for name, by_operation in counter.get_flop_counts().items():
        counts[name.partition(".")[2]] = sum(by_operation.values())
    return {name: count // (2 * len(inputs)) for name, count in counts.items()}


def channels_by_layer(model: nn.Module) -> dict[str, int]:
    """The number of output channels of each convolution and linear layer, by its name."""
    return {
        name: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd))
    }


def zeros_by_parameter(model: nn.Module) -> dict[str, int]:
    """How many entries of each of the model's parameters are exactly 0."""
    return {name: int((p == 0).sum()) for name, p in model.named_parameters()}


def not_finite(model: nn.Module) -> list[str]:
    """The names of the parameters that are trained and hold an infinite entry or no number."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [name for name, p in trained if not p.isfinite().all()]


def count_above(model: nn.Module, thresholds: tuple[float, ...] = THRESHOLDS) -> list[int]:
    """For each threshold, how many entries of `model.parameters()` are greater in magnitude."""
    magnitudes = [p.detach().abs() for p in model.parameters()]
    return [int(sum((values > t).sum() for values in magnitudes)) for t in thresholds]


def log_magnitudes(values: Tensor) -> Tensor:
    """log10 of the magnitudes of finite entries but zeros, (entries,), at least SMALLEST_DECADE."""
    magnitude = values.detach().float().abs()
    present = magnitude[(magnitude > 0) & magnitude.isfinite()]
    return present.log10().clamp(min=SMALLEST_DECADE)
