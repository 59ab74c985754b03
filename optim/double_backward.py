"""Convolutions and BatchNorm with a double backward that costs little beyond its arithmetic.

For a BatchNorm, PyTorch's goes over the activations dozens of times. And where a gradient by the
weights is needed only in its inner product with them, a convolution has that number already from
its other gradients, while PyTorch computes the whole.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import grad
from torch.overrides import TorchFunctionMode

# The gradients of <g, x * w> by x and by w.
CONVOLUTIONS = {
    torch.conv1d: (grad.conv1d_input, grad.conv1d_weight),
    torch.conv2d: (grad.conv2d_input, grad.conv2d_weight),
    torch.conv3d: (grad.conv3d_input, grad.conv3d_weight),
}


class CheapDoubleBackward(TorchFunctionMode):
    """Within it, convolutions and BatchNorms with one of `weights` have a cheap double backward.

    Outputs are PyTorch's, and so are gradients taken with `create_graph=True`. Every other gradient
    by the weights w of a convolution, plain `backward()` included, is right only in its component
    along w, and so in its inner product with w. What cannot be made cheap, PyTorch computes.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.weights = {id(w) for w in weights}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, result = kwargs or {}, None
        # vmap and the like do not take autograd Functions such as these.
        if not torch._C._are_functorch_transforms_active():
            if func in CONVOLUTIONS:
                result = self.convolution(func, *args, **kwargs)
            elif func is F.batch_norm:
                result = self.batch_norm(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def convolution(
        self, func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor | None:  # fmt: skip
        """The convolution, or None where it is PyTorch's to compute, or to refuse."""
        if id(weight) not in self.weights or isinstance(padding, str):
            return None
        dtype, double = weight.dtype, torch.float64 in (weight.dtype, input.dtype)
        if torch.is_autocast_enabled(input.device.type) and not double:
            dtype = torch.get_autocast_dtype(input.device.type)
            input = input.to(dtype)
        fits = bias is None or len(bias) == len(weight)
        if input.dim() != weight.dim() or input.dtype != dtype or not fits:
            return None
        convolve = Convolve(func, (stride, padding, dilation, groups))
        return Convolution.apply(input, weight, bias, convolve)

    def batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        """The normalisation, or None where it is PyTorch's to compute, or to refuse."""
        if id(weight) not in self.weights or bias is None or not training or eps <= 0:
            return None
        given = [x for x in (running_mean, running_var, weight, bias) if x is not None]
        channels = input.shape[1] if input.dim() > 1 else 0
        if any(len(x) != channels for x in given) or input.numel() <= channels:
            return None
        return BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class Convolve(NamedTuple):
    """x * w without a bias, and the gradients of <g, x * w>."""

    func: Callable
    settings: tuple

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        return self.func(x, w.to(x.dtype), None, *self.settings)

    def by_input(self, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return CONVOLUTIONS[self.func][0](x.shape, w.to(g.dtype), g, *self.settings)

    def by_weight(self, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return CONVOLUTIONS[self.func][1](x, w.shape, g, *self.settings).to(w.dtype)


class Convolution(Function):
    """x * w + bias."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, w: Tensor, bias: Tensor | None, convolve: Convolve
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.convolve = convolve
        y = convolve(x, w)
        return y if bias is None else y.add_(per_channel(bias, y))

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), convolve = ctx.saved_tensors, ctx.convolve
        by_bias = channel_sums(g) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():  # create_graph=True: to be differentiated again
            return *ConvolutionBackward.apply(g, x, w, convolve), by_bias, None
        if not ctx.needs_input_grad[0]:
            return None, convolve.by_weight(g, x, w), by_bias, None
        by_x = convolve.by_input(g, x, w)
        return by_x, along(w, by_x, x), by_bias, None


class ConvolutionBackward(Function):
    """The gradients of <g, x * w>; the first is None where x has none."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, g: Tensor, x: Tensor, w: Tensor, convolve: Convolve
    ) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(g, x, w)
        ctx.convolve = convolve
        ctx.set_materialize_grads(False)
        by_x = convolve.by_input(g, x, w) if ctx.needs_input_grad[1] else None
        return by_x, convolve.by_weight(g, x, w)

    @staticmethod
    def backward(
        ctx: FunctionCtx, x_cotangent: Tensor | None, w_cotangent: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (g, x, w), convolve = ctx.saved_tensors, ctx.convolve
        by_g = by_x = by_w = None
        if x_cotangent is not None:
            by_g = convolve(x_cotangent, w)
            again = torch.is_grad_enabled()  # the network itself holds a first derivative
            by_w = convolve.by_weight(g, x_cotangent, w) if again else along(w, by_g, g)
        if w_cotangent is not None:
            term = convolve(x, w_cotangent)
            by_g = term if by_g is None else by_g.add_(term)
            by_x = convolve.by_input(g, x, w_cotangent) if ctx.needs_input_grad[1] else None
        return by_g, by_x, by_w, None


class BatchNorm(Function):
    """weight x̂ + bias, with x̂ = (x - mean) r and r = (variance + eps)^(-1/2) in training mode."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None,
        running_var: Tensor | None, momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        y, mean, r = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, r)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        return *BatchNormBackward.apply(g, *ctx.saved_tensors), None, None, None, None


class BatchNormBackward(Function):
    """The gradients by x, weight and bias: weight r P(g), sum(g x̂) and sum(g).

    P(z) = z - mean(z) - x̂ mean(z x̂), with sums and means over all but the channels.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor
    ) -> tuple[Tensor, ...]:
        gradients = normalisation_backward(g, x, weight, mean, r)
        ctx.save_for_backward(g, x, weight, mean, r, *gradients[1:])
        return gradients

    @staticmethod
    def backward(ctx: FunctionCtx, a: Tensor, b: Tensor, e: Tensor) -> tuple[Tensor | None, ...]:
        """With a, b, e the cotangents of the three gradients, <a, P(g)> = <P(a), g>, and

        by g: weight r P(a) + b x̂ + e,
        by weight: r <P(a), g>,
        by x: r b P(g) - weight r^2 (mean(g x̂) P(a) + mean(a x̂) P(g) + mean(a P(g)) x̂),

        since the derivative of x̂ along z is r P(z), and that of r is -r^2 mean(x̂ z).
        """
        if torch.is_grad_enabled():  # mean and r are taken for constants
            raise RuntimeError("there is no third derivative of BatchNorm, as in PyTorch")
        g, x, weight, mean, r, g_dot, g_sum = ctx.saved_tensors
        count = x.numel() // len(weight)
        by_g, a_dot, a_sum = normalisation_backward(a, x, weight, mean, r)
        g_dot, g_mean, a_dot, a_mean = (s / count for s in (g_dot, g_sum, a_dot, a_sum))
        both = channel_sums(a * g).to(r) / count - a_mean * g_mean - a_dot * g_dot
        # As sums of multiples of a, g and x̂.
        of_a = -weight * r**2 * g_dot
        of_g = r * b - weight * r**2 * a_dot
        of_x = -weight * r**2 * both - of_a * a_dot - of_g * g_dot
        shift = -of_a * a_mean - of_g * g_mean
        by_x = affine(x, mean, r, of_x, shift)
        by_x.addcmul_(g, per_channel(of_g, g)).addcmul_(a, per_channel(of_a, a))
        by_g += affine(x, mean, r, b, e)
        return by_g, by_x, r * both * count, None, None


def normalisation_backward(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, r, True, 0.0, (True, True, True)
    )


def affine(x: Tensor, mean: Tensor, r: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale x̂ + shift."""
    factor = scale * r
    return torch.addcmul(per_channel(shift - factor * mean, x), x, per_channel(factor, x))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values for the channels of x, to be broadcast over it."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def channel_sums(x: Tensor) -> Tensor:
    """The sum of each channel of x."""
    return x.sum([0, *range(2, x.dim())])


def along(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The multiple of w whose inner product with w is <a, b>; w = 0 has none but 0."""
    a, b, flat = (x.reshape(-1).to(w.dtype) for x in (a, b, w))
    square = torch.dot(flat, flat).clamp_(min=torch.finfo(w.dtype).tiny)
    return w * (torch.dot(a, b) / square)
