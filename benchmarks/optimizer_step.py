#!/usr/bin/env python3
"""Time SFW's step as a ratio to that of torch.optim.SGD(momentum=0.9), in one run.

First for whole networks, then for tensors of 10^4 to 10^8 entries, with the memory that a step
takes beyond weights, gradients and momentum buffers. Steps of the optimizers take turns, and
medians are compared. On the CPU, and also on CUDA when there is a device.
"""

import argparse
import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe

from constraints import KSparsePolytope, build_constraints, make_feasible
from models import build_model
from optim import SFW, ProjectedSGD
from utils.compute.timing import time_in_turns

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Mlp": partial(build_model, "Mlp", 10, 1, 28),
    "ResNet18": partial(build_model, "ResNet18", 10, 3, 32),
    "VGG16": partial(build_model, "VGG16", 10, 3, 32),
    "resnet50": torchvision.models.resnet50,
    "vit_b_16": torchvision.models.vit_b_16,
}
SIZES = [10**power for power in range(4, 9)]
# The tensors of a row have this many entries in total; a larger tensor is alone. In training, the
# forward and backward pass displace an optimizer's tensors from the caches; if the tensors of a row
# were small in total, they would stay in the caches from one step to the next.
ENTRIES_PER_ROW = 1 << 26
SPARSITY = 0.05  # K as a fraction of the entries, as in the paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="for each row (default: 4)")
    parser.add_argument("--largest", type=float, default=1e8, help="entries (default: 1e8)")
    parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_extra_memory(arguments.memory_of, arguments.device)
        return
    torch.manual_seed(0)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        print(f"\n{describe(device)}\n")
        networks(device, arguments.seconds)
        print()
        sizes(device, arguments.seconds, arguments.largest)


def networks(device: str, seconds: float) -> None:
    columns = "SFW / SGD", "SFW, L2 ball / SGD", "projected SGD / SGD", "plain SFW / SGD"
    print(f"| network | parameters | SGD, ms | {' | '.join(columns)} |")
    print("| --- | --- | --- |" + " --- |" * len(columns))
    for name, build in NETWORKS.items():
        model = build().to(device)
        regions, balls = (
            build_constraints(model, kind, k_frac=SPARSITY, tau=30.0, mode="diameter")
            for kind in ("k_sparse_constraints", "l2_constraints")
        )
        make_feasible(model, regions)
        parameters = list(model.parameters())
        for p in parameters:
            p.grad = torch.randn_like(p)
        # A tiny rate keeps the weights where they are while all work is done.
        steps = [
            torch.optim.SGD(parameters, lr=1e-9, momentum=0.9).step,
            SFW(parameters, regions, lr=1e-6).step,
            SFW(parameters, balls, lr=1e-6).step,
            ProjectedSGD(parameters, regions, lr=1e-9).step,
            SFW(parameters, regions, lr=1e-6, fused=False).step,
        ]
        sgd, *others = time_in_turns(steps, seconds, device)
        ratios = " | ".join(f"{other / sgd:.2f}" for other in others)
        count = sum(p.numel() for p in parameters)
        print(f"| {name} | {count:,} | {sgd * 1e3:.2f} | {ratios} |", flush=True)


def sizes(device: str, seconds: float, largest: float) -> None:
    print("| entries | SGD, ns an entry | SFW, ns an entry | SFW / SGD | memory / tensor |")
    print("| --- | --- | --- | --- | --- |")
    for n in (size for size in SIZES if size <= largest):
        count = max(1, ENTRIES_PER_ROW // n)
        tensors = [nn.Parameter(torch.zeros(n, device=device)) for _ in range(count)]
        for p in tensors:
            p.grad = torch.randn(n, device=device)
        region = KSparsePolytope(n, max(1, int(SPARSITY * n)), radius=1.0)
        steps = [
            torch.optim.SGD(tensors, lr=1e-9, momentum=0.9).step,
            SFW(tensors, [region] * len(tensors), lr=1e-6).step,
        ]
        sgd, ours = (t / (n * len(tensors)) * 1e9 for t in time_in_turns(steps, seconds, device))
        memory = extra_memory(n, device) / (tensors[0].element_size() * n)
        print(f"| {n:,} | {sgd:.3f} | {ours:.3f} | {ours / sgd:.2f} | {memory:.2f} |", flush=True)


def extra_memory(n: int, device: str) -> float:
    """Bytes by which memory peaks during a step, measured in a new process; NaN if unknown."""
    command = [sys.executable, __file__, "--memory_of", str(n), "--device", device]
    # Freed memory is returned to the system at once, so that all memory in use is measured.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_extra_memory(n: int, device: str) -> None:
    """What `extra_memory` runs: a step that allocates its scratch space."""
    p = nn.Parameter(torch.zeros(n, device=device))
    p.grad = torch.randn(n, device=device)
    regions = [KSparsePolytope(n, max(1, int(SPARSITY * n)), radius=1.0)]
    former = SFW([p], regions, lr=1e-6)
    former.step()  # compiles, and makes the momentum buffer
    optimizer = SFW([p], regions, lr=1e-6)  # which has no scratch space yet
    optimizer.load_state_dict(former.state_dict())
    del former
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        print(torch.cuda.max_memory_allocated() - before)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    except OSError:
        print(math.nan)
        return
    before = resident("VmRSS")
    optimizer.step()
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


if __name__ == "__main__":
    main()
