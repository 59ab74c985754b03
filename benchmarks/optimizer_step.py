#!/usr/bin/env python3
"""Time SFW's step as a ratio to that of torch.optim.SGD(momentum=0.9), in one run.

First for whole networks, then for tensors of 10^4 to 10^8 entries. Steps of the optimizers take
turns, and medians are compared. On the CPU, and also on CUDA when there is a device. There, what a
step launches and moves is shown, too.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, row, table

from constraints import KSparsePolytope, build_constraints, make_feasible
from models import build_model
from optim import SFW, ProjectedSGD
from utils.compute.timing import time_in_turns

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Mlp": partial(build_model, "Mlp", 10, 1, 28),
    "ResNet18": partial(build_model, "ResNet18", 10, 3, 32),
    "VGG16": partial(build_model, "VGG16", 10, 3, 32),
    # The others do without torchvision.
    "resnet50": lambda: import_module("torchvision.models").resnet50(),
    "vit_b_16": lambda: import_module("torchvision.models").vit_b_16(),
}
SIZES = [10**power for power in range(4, 9)]
# The tensors of a row have this many entries in total; a larger tensor is alone. In training, the
# forward and backward pass displace an optimizer's tensors from the caches; if the tensors of a row
# were small in total, they would stay in the caches from one step to the next.
ENTRIES_PER_ROW = 1 << 26
SPARSITY = 0.05  # K as a fraction of the entries, as in the paper
# Their places among the steps, and the bytes an entry that they move: see optim/cuda/step.py; SGD
# reads theta, g and m, and writes two of them. Those of the plain step are not known.
MOVED = {"SFW": (1, 40), "plain SFW": (4, 0), "fused SGD": (5, 20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="for each row (default: 4)")
    parser.add_argument("--largest", type=float, default=1e8, help="entries (default: 1e8)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    parser.add_argument("--devices", nargs="+", choices=devices, default=devices)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for device in arguments.devices:
        print(f"\n{describe(device)}\n")
        networks(device, arguments.seconds, arguments.networks)
        if arguments.largest >= SIZES[0]:
            print()
            sizes(device, arguments.seconds, arguments.largest)


def networks(device: str, seconds: float, names: Iterable[str]) -> None:
    columns = ["SFW", "SFW, L2 ball", "projected SGD", "plain SFW"]
    columns += ["fused SGD"] * (device == "cuda")
    heads = [f"{name} / SGD" for name in columns]
    heads += [f"{name}: launches, ms, GB/s" for name in MOVED] * (device == "cuda")
    table(["network", "parameters", "SGD, ms", *heads])
    for name in names:
        model = NETWORKS[name]().to(device)
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
        if device == "cuda":
            steps.append(torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, fused=True).step)
        sgd, *others = time_in_turns(steps, seconds, device)
        count = sum(p.numel() for p in parameters)
        cells = [f"{other / sgd:.2f}" for other in others]
        if device == "cuda":
            cells += [launches(steps[i], count * moved) for i, moved in MOVED.values()]
        row(name, f"{count:,}", f"{sgd * 1e3:.2f}", *cells)


def launches(step: Callable[[], object], moved: int) -> str:
    """Kernels and copies of a step on CUDA, their time, and with the bytes that they move, GB/s."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    seconds = sum(event.time_range.elapsed_us() for event in events) / 1e6
    if not seconds:
        return "not seen by the profiler"
    rate = f", {moved / seconds / 1e9:.0f}" if moved else ""
    return f"{len(events)}, {1e3 * seconds:.3f}{rate}"


def sizes(device: str, seconds: float, largest: float) -> None:
    table(["entries", "SGD, ns an entry", "SFW, ns an entry", "SFW / SGD"])
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
        row(f"{n:,}", f"{sgd:.3f}", f"{ours:.3f}", f"{ours / sgd:.2f}")


if __name__ == "__main__":
    main()
