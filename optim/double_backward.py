"""Convolutions and BatchNorm with a double backward that costs little beyond its arithmetic.

PyTorch's own passes over the activations dozens of times for a BatchNorm. And for a gradient that
is needed only in its inner product with the weights, a convolution has that number already, but
PyTorch computes the whole.
"""

from collections.abc import Callable, Collection
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
    """A context in which layers with one of `weights` are computed so that this is cheap.

    Results and first derivatives (with `create_graph=True`) are as ever. Of a second derivative by
    a tensor w of `weights` only the component along w is right, and so its inner product with w.
    What cannot be made cheap, and layers with other weights, PyTorch computes.
    """

    def __init__(self, weights: Collection[Tensor]) -> None:
        super().__init__()
        self.weights = {id(w) for w in weights}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, result = kwargs or {}, None
        if func in CONVOLUTIONS:
            result = self.convolution(func, *args, **kwargs)
        elif func is F.batch_norm:
            result = self.batch_norm(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def convolution(
        self, func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor | None:  # fmt: skip
        """The convolution, or None where it is PyTorch's to compute."""
        one_image = input.dim() < weight.dim()
        if id(weight) not in self.weights or one_image or isinstance(padding, str):
            return None
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        product = Product(func, (stride, padding, dilation, groups))
        return Convolution.apply(input, weight, bias, product)

    def batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        """The normalisation, or None where it is PyTorch's to compute."""
        if id(weight) not in self.weights or bias is None or not training:
            return None
        return BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class Product(NamedTuple):
    """The convolution x * w without a bias, and the gradients of <g, x * w>."""

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
        ctx: FunctionCtx, x: Tensor, w: Tensor, bias: Tensor | None, product: Product
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.product = product
        y = product(x, w)
        return y if bias is None else y.add_(per_channel(bias, y))

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), product = ctx.saved_tensors, ctx.product
        by_bias = over_channels(g) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():  # a first derivative
            return *ConvolutionBackward.apply(g, x, w, product), by_bias, None
        if not ctx.needs_input_grad[0]:
            return None, product.by_weight(g, x, w), by_bias, None
        by_x = product.by_input(g, x, w)
        return by_x, along(w, by_x, x), by_bias, None


class ConvolutionBackward(Function):
    """The gradients of <g, x * w>; the first is None where x has none."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, g: Tensor, x: Tensor, w: Tensor, product: Product
    ) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(g, x, w)
        ctx.product = product
        ctx.set_materialize_grads(False)
        by_x = product.by_input(g, x, w) if ctx.needs_input_grad[1] else None
        return by_x, product.by_weight(g, x, w)

    @staticmethod
    def backward(
        ctx: FunctionCtx, x_cotangent: Tensor | None, w_cotangent: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (g, x, w), product = ctx.saved_tensors, ctx.product
        by_g = by_x = by_w = None
        if x_cotangent is not None:
            by_g = product(x_cotangent, w)
            by_w = along(w, by_g, g)
        if w_cotangent is not None:
            term = product(x, w_cotangent)
            by_g = term if by_g is None else by_g.add_(term)
            by_x = product.by_input(g, x, w_cotangent) if ctx.needs_input_grad[1] else None
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
        g, x, weight, mean, r, g_dot, g_sum = ctx.saved_tensors
        count = x.numel() // len(weight)
        by_g, a_dot, a_sum = normalisation_backward(a, x, weight, mean, r)
        g_dot, g_mean, a_dot, a_mean = (s / count for s in (g_dot, g_sum, a_dot, a_sum))
        both = over_channels(a * g).to(r) / count - a_mean * g_mean - a_dot * g_dot
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


def over_channels(x: Tensor) -> Tensor:
    """The sum of each channel of x."""
    return x.sum([0, *range(2, x.dim())])


def along(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The multiple of w whose inner product with w is <a, b>; w = 0 has none but 0."""
    flat = w.reshape(-1)
    square = torch.dot(flat, flat).clamp_(min=torch.finfo(w.dtype).tiny)
    return w * (torch.dot(a.reshape(-1), b.reshape(-1)) / square)
