"""How long code takes, compared with other code in the same run."""

import time
from collections.abc import Callable
from statistics import median

import torch


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
