"""Whether the fused step works on a device: it is tried once, on two small tensors."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from constraints import KSparsePolytope

# The first has two blocks, the second a memory format of its own.
SHAPES = ((33, 150), (8, 6, 3, 3))
# With this momentum all sums are exact, so that the fused and the plain step see the same ties.
LR, MOMENTUM, STEPS = 0.5, 0.5, 2
TOLERANCE = 1e-5


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
    from optim.cuda.step import FusedStep, Slot  # imports Triton
    from optim.sfw import plain_step

    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        x = torch.randn(shape, generator=generator).mul_(4).round_().div_(4)  # many entries tie
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return x.to(device, memory_format=layout)

    group = {"lr": LR, "momentum": MOMENTUM, "weight_decay": 0.0, "rescale": "gradient"}
    slots, plain = [], []
    for weights in map(draw, SHAPES):
        region = KSparsePolytope(weights.numel(), weights.numel() // 20, radius=0.5)
        steps = torch.zeros((), device=device)
        slots.append(Slot(weights, weights.clone(), weights.clone(), steps, region, group))
        plain.append((weights.clone(), weights.clone()))
    fused = FusedStep()
    for step in range(STEPS):
        for slot, (p, m) in zip(slots, plain, strict=True):
            slot.gradient.copy_(draw(p.shape))
            plain_step(p, m, slot.region, LR, None, MOMENTUM if step else 0.0, slot.gradient)
        fused(slots)
    pairs = [(s.weights, p) for s, (p, _) in zip(slots, plain, strict=True)]
    pairs += [(s.momentum, m) for s, (_, m) in zip(slots, plain, strict=True)]
    return torch.stack([(a - b).abs().max() for a, b in pairs]).max().item()
