"""Restoring the outputs of a pruned network's layers, where no BatchNorm does it.

Pruning shrinks and shifts what a layer puts out. Each output channel is scaled and shifted back to
the mean and standard deviation that it has in the dense network (after Adaptive Signal
Resuscitation, arXiv 2605.21426, which scales by the standard deviation alone, with shrinkage).
Where a BatchNorm follows, measuring its statistics anew does the same, and better: see
utils/prune/recalibrate.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from utils.compute.device import autocast

Signals = dict[str, tuple[Tensor, Tensor]]  # by layer: its outputs' mean and deviation by channel

# Of the dense network's deviation: what varies less is rounding error, and is not enlarged.
LEAST_DEVIATION = 1e-3


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers, in the order in which they were registered."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}


@torch.no_grad()
def measure_signals(
    model: nn.Module, batches: Sequence[Tensor], names: Sequence[str], precision: str = "fp32"
) -> Signals:
    """Mean and standard deviation, (channels,), of what the layers of these names put out.

    `batches` are inputs; the model is in evaluation mode then. Channels are the outputs' second
    dimension.
    """
    sums = {name: [] for name in names}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, outputs: Tensor) -> None:
            values = outputs.double().transpose(0, 1).flatten(1)
            count = torch.full_like(values[:, 0], values.shape[1])
            sums[name].append(torch.stack([count, values.sum(1), values.square().sum(1)]))

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(note(name)) for name in names]
    model.eval()
    try:
        with autocast(batches[0].device, precision):
            for inputs in batches:
                model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    signals = {}
    for name, parts in sums.items():
        count, total, squares = torch.stack(parts).sum(0)
        mean = total / count
        signals[name] = mean, (squares / count - mean**2).clamp(min=0).sqrt()
    return signals


@torch.no_grad()
def repair(
    model: nn.Module, dense: Signals, batches: Sequence[Tensor], precision: str = "fp32"
) -> None:
    """Give each layer's outputs the mean and deviation that `dense` has, layer after layer.

    Changes weights and biases in place, but none that are 0. `dense` is of `layers_with_weights`
    on the same batches, before pruning.
    """
    layers = layers_with_weights(model)
    for name, (mean, deviation) in dense.items():
        layer = layers[name]
        ((now, spread),) = measure_signals(model, batches, [name], precision).values()
        enough = (spread > LEAST_DEVIATION * deviation) & (deviation > 0)
        scale = torch.where(enough, deviation / spread, 1)
        by_output = (-1,) + (1,) * (layer.weight.dim() - 1)
        layer.weight.mul_(scale.to(layer.weight).view(by_output))
        if layer.bias is not None:
            shifted = mean - scale * (now - layer.bias)
            layer.bias.copy_(torch.where(layer.bias == 0, 0, shifted))
