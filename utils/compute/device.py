"""The device of a run, and the arithmetic on it."""

import ctypes
import logging
import mmap
import os
import shlex
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.process.errors import RunError, UserError, reason

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
HEAP = 1 << 32  # bytes that are to be in huge pages, at most

# oneDNN's block of channels with AVX-512; with AVX2 it is 8.
CHANNEL_BLOCK = 16


def process_count() -> int:
    """How many processes of this script torchrun has started, on all machines; 1 without it."""
    count = os.environ.get("WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def pick_device(gpu: int) -> torch.device:
    """The CPU for -1, else that CUDA device, set up for this process.

    On CUDA, fp32 is PyTorch's own: convolutions multiply in TF32, whose factors have 10 bits of
    mantissa, and linear layers in full precision. Raises UserError when the device is not there or
    cannot be used, and in one of several processes that are not connected: all would use it.
    """
    if process_count() > 1 and not dist.is_initialized():
        raise UserError(
            f"WORLD_SIZE={process_count()}: this is one of several processes; train_prune.py alone"
            " can use them, started by torchrun; otherwise unset WORLD_SIZE, and use python"
        )
    if gpu < 0:
        keep_freed_memory()
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu >= count:
        devices = f"devices 0 to {count - 1}" if count else "no CUDA device"
        raise UserError(f"--gpu {gpu}: PyTorch finds {devices}; --gpu -1 runs on the CPU")
    try:
        torch.cuda.set_device(gpu)  # what names no device then takes no memory on another
        torch.empty(1, device="cuda")
    except RuntimeError as error:
        raise UserError(
            f"--gpu {gpu}: cannot be used ({reason(error)}); choose another, or -1 for the CPU"
        ) from None
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    return torch.device("cuda", gpu)


def keep_freed_memory() -> None:
    """Make glibc, where it is the C library, keep freed memory for this process to use again.

    New memory is handed out page by page and zeroed: a fifth of ResNet18's training time on a CPU.
    Huge pages, which Linux may give to programs that ask for them, save another 7 %.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    if not hasattr(mmap, "MADV_HUGEPAGE") or mmap.PAGESIZE > 4096 or "LD_PRELOAD" in os.environ:
        return  # huge pages would be too large, or the allocator may be another one
    size = min(HEAP, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    # Addresses of what glibc hands out next, which take memory once they are written to. If it did
    # not get them, it would turn to arenas that give memory back: the system is asked first.
    with suppress(OSError):
        mmap.mmap(-1, size + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        if start := libc.malloc(size + mmap.PAGESIZE):
            libc.madvise(-(-start // mmap.PAGESIZE) * mmap.PAGESIZE, size, mmap.MADV_HUGEPAGE)
            libc.free(start)


def placed(
    model: nn.Module, device: torch.device, image_shape: tuple[int, int, int] | None = None
) -> nn.Module:
    """The model on the device, in the memory format in which convolutions are fastest.

    With `image_shape` (channels, height, width) it is tried on such images: networks that flatten
    with `view` fail, and keep PyTorch's ordinary format. So do tensors of five dimensions.
    """
    training = model.training
    model.to(device)
    if trains_in_channels_last(model):
        with suppress(RuntimeError), torch.no_grad():
            model.to(memory_format=torch.channels_last)
            if image_shape is not None:
                model.eval()
                model(torch.zeros(2, *image_shape, device=device))
                model.train(training)
            return model
    model.to(memory_format=torch.contiguous_format).train(training)
    return model


def trains_in_channels_last(model: nn.Module) -> bool:
    """False on the CPU if a strided 1x1 convolution has fewer input channels than oneDNN's block.

    Its fp32 gradient would be wrong in channels_last, or the process would crash or hang
    (github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return next(model.parameters()).is_cuda or not any(
        isinstance(layer, nn.Conv2d)
        and max(layer.kernel_size) == 1 < max(layer.stride)
        and layer.in_channels < CHANNEL_BLOCK
        for layer in model.modules()
    )


def network_generator(device: torch.device) -> torch.Generator:
    """PyTorch's own generator on this device: dropout and the like take no other."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[device.index]


def check_compiler(device: torch.device) -> None:
    """Raise UserError where --compile lacks a compiler or, on CUDA, Python's headers."""
    # On a CPU torch.compile writes C++; on CUDA Triton, which compiles its launcher as C.
    on_cpu = device.type == "cpu"
    variable, name = ("CXX", "g++") if on_cpu else ("CC", "gcc")
    needed = [Path(shlex.split(os.environ.get(variable) or name)[0])]
    if not on_cpu:
        needed.append(Path(sysconfig.get_path("include"), "Python.h"))
    for file in needed:
        if not (file.is_file() or shutil.which(file)):
            raise UserError(f"--compile: needs {file}, which is not there; install it")


def compiled(model: nn.Module, batch_size: int) -> Callable[[Tensor], Tensor]:
    """The model's forward pass, its backward pass included, for batches of this size.

    A round's last, smaller batch is not worth a compilation: the model itself takes it. A call
    raises RunError when the compiler fails.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA: no news
    # The compiler makes all convolutions on a CPU channels_last, unless this option is False.
    layout = {"layout_optimization": trains_in_channels_last(model)}
    fast = torch.compile(model, dynamic=False, options=layout)

    def forward(inputs: Tensor) -> Tensor:
        if len(inputs) != batch_size:
            return model(inputs)
        try:
            return fast(inputs)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            message = f"--compile: the compiler failed ({reason(error)}); go on without it"
            raise RunError(message) from None

    return forward


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Where the network runs in the arithmetic of --precision."""
    # SFW-Init makes new weights in every iteration: a cache of converted ones would only grow.
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
