"""Whether the fused step works on a device: it is tried once, on two small tensors."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from constraints import KSparsePolytope

# The first has two blocks, the second a memory format of its own.
SHAPES = ((33, 150), (8, 6, 3, 3))
# With this momentum all sums are exact, so that the fused and the plain step see the same ties.
MOMENTUM, STEPS, TOLERANCE = 0.5, 2, 1e-5


def available(device: torch.device) -> str | None:
    """Why the fused step cannot be taken on `device`, in one line; None if it can.

    The first call for a device compiles the kernels, takes two steps and compares them with plain
    ones. That waits for the device, as no later step does, and cannot be captured in a CUDA graph.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _try(device)


@functools.cache
def _try(device: torch.device) -> str | None:
    try:
        with torch.no_grad(), _waits_allowed(device):
            difference = _largest_difference(device)
    except Exception as error:  # what Triton, the compilers it needs or the driver cannot do
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[-1]}"
    if difference <= TOLERANCE:
        return None
    return f"its results differ from the plain step's by {difference:g}"


@contextmanager
def _waits_allowed(device: torch.device) -> Iterator[None]:
    """Within it, PyTorch does not report that the host waits for the device."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _largest_difference(device: torch.device) -> float:
    """Between weights and momentum buffers that fused steps leave and those that plain ones do."""
    from optim.constrained import TensorStep
    from optim.cuda.step import CudaStep  # imports Triton
    from optim.plain import plain_step

    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        x = torch.randn(shape, generator=generator).mul_(4).round_().div_(4)  # many entries tie
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return x.to(device, memory_format=layout)

    group = {"lr": 0.5, "weight_decay": 0.0, "rescale": "gradient"}
    fused, plain = [], []
    for shape in SHAPES:
        theta, gradient, m = (draw(shape) for _ in range(3))
        region = KSparsePolytope(theta.numel(), theta.numel() // 20, radius=0.5)
        fused.append(TensorStep(theta, theta, gradient, m, 0.0, region, group))
        plain.append(replace(fused[-1], theta=theta.clone(), momentum_buffer=m.clone()))
    step = CudaStep()
    for _ in range(STEPS):
        step(fused)
        plain_step(plain)
        for s, expected in zip(fused, plain, strict=True):
            s.gradient = expected.gradient = draw(s.theta.shape)
            s.momentum = expected.momentum = MOMENTUM
    differences = [
        (a - b).abs().max()
        for s, expected in zip(fused, plain, strict=True)
        for a, b in zip(s.tensors, expected.tensors, strict=True)
    ]
    return torch.stack(differences).max().item()
