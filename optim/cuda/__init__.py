"""SFW's step on a GPU: whether it can be taken, for which tensors and, by one trial, on a device.

If `obstacle` says that it can be, `optim.cuda.step.CudaStep` takes it in a few launches of Triton
kernels. Without Triton that module cannot be imported. Nothing in this folder has run on a GPU yet:
tests run the kernels in Triton's interpreter and compile them for the A100 and the H100.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from constraints import KSparsePolytope, Region, SignVertex
from optim.base import TensorStep, channels_last
from optim.foreach import plain_step

# The most entries of a tensor that the kernels can count.
MOST_ENTRIES = 2**31 - 2**16
# Shapes of the tensors in the trial: the first has two blocks, the second is channels-last.
SHAPES = ((33, 150), (8, 6, 3, 3))
# With this momentum all sums are exact, so that entries tie in the fused step and in the plain one.
TRIAL_MOMENTUM, STEPS, TOLERANCE = 0.5, 2, 1e-5


def obstacle(device: torch.device, region: Region, tensors: Sequence[Tensor] = ()) -> str | None:
    """Why the step cannot be taken with this region, these tensors, or on `device` at all.

    None if it can be. `tensors` are a parameter's weights, gradient and momentum buffer.
    """
    if not isinstance(region.vertex, SignVertex):
        return f"the vertices of {region!r} are not sparse sign vectors"
    if region.n > MOST_ENTRIES:
        return f"there is a tensor of more than {MOST_ENTRIES} entries"
    if any(x.dtype != torch.float32 or type(x) not in (Tensor, nn.Parameter) for x in tensors):
        return "parameter, gradient and momentum buffer are not plain float32 tensors"
    layouts = {(x.device, x.layout, x.shape, channels_last(x)) for x in tensors}
    if len(layouts) > 1 or any(order is None for *_, order in layouts):
        return (
            "parameter, gradient and momentum buffer do not lie in memory alike, contiguous or"
            " channels last"
        )
    return available(device)


@functools.cache
def available(device: torch.device) -> str | None:
    """Why the step cannot be taken on `device`, in one line; None if it can.

    The first call for a device compiles the kernels, takes two steps with them and compares these
    with plain ones. It waits for the device, which no later step does, so that it fails where
    torch.cuda.set_sync_debug_mode forbids that, and cannot be captured in a CUDA graph. Warns if
    Triton is installed but the step does not work.
    """
    if find_spec("triton") is None:
        return "it needs Triton, which is not installed"
    try:
        with torch.no_grad():
            difference = _largest_difference(device)
        if difference <= TOLERANCE:
            return None
        reason = f"its results differ from the plain step's by {difference:g}"
    except Exception as error:  # of any type: from Triton, the compilers that it needs, the driver
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[-1]}"
    warnings.warn(
        f"SFW takes its plain step on {device}: the fused one does not work there ({reason})",
        stacklevel=2,
    )
    return reason


def _largest_difference(device: torch.device) -> float:
    """The largest difference of weights and momentum buffers between fused and plain steps."""
    from optim.cuda.step import CudaStep  # imports Triton

    on_host = {"dtype": torch.float32, "device": "cpu"}  # whatever a program's defaults are
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        x = torch.randn(shape, generator=generator, **on_host).mul_(4).round_().div_(4)  # many tie
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return x.to(device, memory_format=layout)

    group = {"lr": 0.5, "weight_decay": 0.0, "rescale": "gradient"}
    fused, plain = [], []
    for shape in SHAPES:
        theta, gradient, m = (draw(shape) for _ in range(3))
        region = KSparsePolytope(theta.numel(), theta.numel() // 20, radius=0.5)
        fused.append(TensorStep(theta, theta, gradient, m, 0.0, region, group))
        plain.append(replace(fused[-1], theta=theta.clone(), momentum_buffer=m.clone()))
    take = CudaStep()
    for _ in range(STEPS):
        take(fused)
        plain_step(plain)
        for s, expected in zip(fused, plain, strict=True):
            s.gradient = expected.gradient = draw(s.theta.shape)
            s.momentum = expected.momentum = TRIAL_MOMENTUM
    differences = [
        (a - b).abs().max()
        for s, expected in zip(fused, plain, strict=True)
        for a, b in zip(s.tensors, expected.tensors, strict=True)
    ]
    return torch.stack(differences).max().item()
