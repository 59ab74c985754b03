"""How the benchmarks take times, and the machine they ran on."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch


def describe(device: str) -> str:
    if device == "cuda":
        return f"CUDA: {torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"CPU: {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def time_in_turns(steps: list[Callable], seconds: float, device: str) -> list[float]:
    """The median seconds that each of `steps` takes, over rounds in which each is called once."""
    for step in steps * 2:
        step()
    times: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for step, taken in zip(steps, times, strict=True):
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in times]


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
