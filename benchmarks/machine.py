"""What benchmarks print: the machine that they ran on, and tables."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch


def describe(device: str) -> str:
    if device == "cuda":
        return f"CUDA: {torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"CPU: {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def table(titles: Sequence[str]) -> None:
    row(*titles)
    row(*["---"] * len(titles))
