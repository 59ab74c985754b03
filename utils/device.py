"""The device of a run, and the arithmetic on it."""

from contextlib import AbstractContextManager

import torch

from utils.errors import UserError


def pick_device(gpu: int) -> torch.device:
    """The CPU for -1, else that CUDA device; raises UserError when it is not there."""
    if gpu < 0:
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu >= found:
        there = f"devices 0 to {found - 1}" if found else "no CUDA device"
        raise UserError(f"--gpu {gpu}: PyTorch finds {there}; --gpu -1 runs on the CPU")
    return torch.device("cuda", gpu)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Where the network runs in the arithmetic of --precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
