"""The device of a run, and the arithmetic on it."""

import ctypes
import logging
import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from utils.process.errors import UserError

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def pick_device(gpu: int) -> torch.device:
    """The CPU for -1, else the CUDA device of this number; raises UserError if there is none."""
    if gpu < 0:
        keep_freed_memory()
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu >= count:
        available = f"devices 0 to {count - 1}" if count else "no CUDA device"
        raise UserError(f"--gpu {gpu}: PyTorch finds {available}; --gpu -1 runs on the CPU")
    torch.cuda.set_device(gpu)  # what names no device then takes no memory on another
    return torch.device("cuda", gpu)


def keep_freed_memory() -> None:
    """Make glibc, where it is the C library, keep freed memory for this process to use again.

    Otherwise each step's large tensors are new memory, which the system hands out page by page and
    zeroed. On a CPU that takes a fifth of ResNet18's training time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def placed(model: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """The model on the device, in the memory format in which its convolutions are fastest there."""
    if device.type == "cpu" or precision == "bf16":
        return model.to(device, memory_format=torch.channels_last)
    return model.to(device)


def check_compiler() -> None:
    """Raise UserError where --compile cannot work for want of a C++ compiler."""
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]
    if shutil.which(compiler) is None:
        raise UserError(f"--compile: needs a C++ compiler, and there is no {compiler}; install it")


def compiled(model: nn.Module, batch_size: int) -> Callable[[Tensor], Tensor]:
    """The model's forward pass, its backward pass included, for batches of this size.

    A round's last, smaller batch is not worth a compilation: the model itself takes it.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA: no news
    fast = torch.compile(model, dynamic=False)
    return lambda inputs: (fast if len(inputs) == batch_size else model)(inputs)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Where the network runs in the arithmetic of --precision."""
    # SFW-Init makes new weights in every iteration: a cache of converted ones would only grow.
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
