"""Restoring the output statistics of a pruned network's layers, for networks without BatchNorm.

Pruning changes the mean and standard deviation of a layer's outputs. Here each output channel is
scaled and shifted so that both are again those of the dense network (after Adaptive Signal
Resuscitation, arXiv 2605.21426, which scales by the standard deviation alone, with shrinkage). In
a network with BatchNorm, utils/prune/corrections/recalibrate.py does this without changing weights.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.compute.device import autocast
from utils.prune.weights.patterns import has_plain_weights

# For each layer, the mean and the standard deviation of its outputs, both (channels,).
Signals = dict[str, tuple[Tensor, Tensor]]

# A channel whose deviation is less than this fraction of the dense network's holds rounding errors
# alone, and is not scaled.
LEAST_DEVIATION = 1e-3


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers by name, in the order of their registration.

    Those whose weight is computed, as by weight normalisation or in a `forward` of their own, or
    shared with another layer are left out: it cannot be scaled for one layer alone.
    """
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return {
        name: m
        for name, m in model.named_modules()
        if has_plain_weights(m) and owners[id(m._parameters.get("weight"))] == 1
    }


@torch.no_grad()
def measure_signals(
    model: nn.Module, batches: Sequence[Tensor], names: Sequence[str], precision: str = "fp32"
) -> Signals:
    """The mean and standard deviation of the outputs of the layers called `names`, by channel.

    Channels are the last dimension of a linear layer's outputs, and the second of others.
    `batches` holds inputs. Outputs that are not finite do not count, and a channel that has no
    others is NaN. A layer that is not called, as attention's own linear layers are not, is left
    out. Afterwards the model is in evaluation mode.
    """
    sums = {model.get_submodule(name): [] for name in names}

    def note(module: nn.Module, _inputs: object, outputs: Tensor) -> None:
        channels = -1 if isinstance(module, nn.Linear) else 1
        values = outputs.double().transpose(0, channels).flatten(1)
        finite = values.isfinite()
        values, count = torch.where(finite, values, 0), finite.sum(1).to(values)
        sums[module].append(torch.stack([count, values.sum(1), values.square().sum(1)]))

    hooks = [module.register_forward_hook(note) for module in sums]
    model.eval()
    try:
        with autocast(batches[0].device, precision):
            for inputs in batches:
                model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    signals = {}
    for name, parts in zip(names, sums.values(), strict=True):
        if parts:
            count, total, squares = torch.stack(parts).sum(0)
            mean = total / count
            signals[name] = mean, (squares / count - mean**2).clamp(min=0).sqrt()
    return signals


@torch.no_grad()
def repair(
    model: nn.Module, dense: Signals, batches: Sequence[Tensor], precision: str = "fp32"
) -> None:
    """Restore the mean and deviation `dense` of each layer's outputs, one layer after the other.

    Weights and biases change in place; those that are 0 stay 0, so that the mean is restored only
    where there is a bias that was not pruned. `dense` is what `measure_signals`
    returned for all `layers_with_weights` on the same batches before pruning.
    """
    layers = layers_with_weights(model)
    for name, (mean, deviation) in dense.items():
        layer = layers[name]
        pruned_mean, pruned_deviation = measure_signals(model, batches, [name], precision)[name]
        varies = (pruned_deviation > LEAST_DEVIATION * deviation) & (deviation > 0)
        scale = torch.where(varies, deviation / pruned_deviation, 1)
        by_output = (-1,) + (1,) * (layer.weight.dim() - 1)
        layer.weight.mul_(scale.to(layer.weight).view(by_output))
        if layer.bias is not None:
            shifted = mean - scale * (pruned_mean - layer.bias)
            stays = (layer.bias == 0) | shifted.isnan()
            layer.bias.copy_(torch.where(stays, layer.bias, shifted))
