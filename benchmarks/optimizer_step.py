#!/usr/bin/env python3
"""Time SFW's step as a ratio to those of torch.optim.SGD(momentum=0.9) and AdamW, in one run.

Steps of the optimizers take turns, and medians are compared. On the CPU with one thread and with
all, and also on CUDA when there is a device; what a step launches and moves there is shown, too.
With --against, another checkout and this one run in turns.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# --against runs this file with the code of another checkout.
sys.path.insert(0, os.environ.get("CHECKOUT", str(Path(__file__).parents[1])))

from machine import describe, row, table

from constraints import build_constraints, make_feasible
from models import build_model
from optim import SFW, ProjectedSGD
from utils.compute.device import keep_freed_memory
from utils.compute.timing import time_in_turns

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Mlp": partial(build_model, "Mlp", 10, 1, 28),
    "ResNet18": partial(build_model, "ResNet18", 10, 3, 32),
    "VGG16": partial(build_model, "VGG16", 10, 3, 32),
    "resnet50": partial(build_model, "torchvision.models:resnet50", 1000, 3, 224),
    "vit_b_16": partial(build_model, "torchvision.models:vit_b_16", 1000, 3, 224),
}
# By name, what makes an optimizer of parameters with K-sparse polytopes and with L2 balls. A tiny
# rate keeps the weights where they are while all work is done.
OPTIMIZERS = {
    "SGD, fused": lambda p, *_: torch.optim.SGD(p, lr=1e-9, momentum=0.9, fused=True),
    "SGD": lambda p, *_: torch.optim.SGD(p, lr=1e-9, momentum=0.9),
    "AdamW, fused": lambda p, *_: torch.optim.AdamW(p, lr=1e-9, fused=True),
    "SFW": lambda p, polytopes, _: SFW(p, polytopes, lr=1e-6),
    "SFW, L2 ball": lambda p, _, balls: SFW(p, balls, lr=1e-6),
    "projected SGD": lambda p, polytopes, _: ProjectedSGD(p, polytopes, lr=1e-9),
    "plain SFW": lambda p, polytopes, _: SFW(p, polytopes, lr=1e-6, fused=False),
}
# The bytes an entry that steps move: see optim/cuda/step.py; SGD reads theta, g and m, and writes
# two of them. Those of the plain step are not known.
MOVED = {"SGD, fused": 20, "SFW": 40, "plain SFW": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="for each row (default: 4)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    parser.add_argument("--devices", nargs="+", choices=devices, default=devices)
    parser.add_argument("--against", type=Path, help="another checkout, to be timed in turns")
    arguments = parser.parse_args()
    if arguments.against:
        sys.exit(against(arguments))
    keep_freed_memory()  # as in a training on the CPU
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    for device, count in [("cpu", 1), ("cpu", threads), ("cuda", threads)][threads == 1 :]:
        if device not in arguments.devices:
            continue
        torch.set_num_threads(count)
        print(f"\n{describe(device)}\n")
        networks(device, arguments.seconds, arguments.networks)


def against(arguments: argparse.Namespace) -> int:
    """Time networks with the other checkout and with this one, three times in turns."""
    flags = ["--seconds", str(arguments.seconds), "--devices", *arguments.devices, "--networks"]
    for checkout in [arguments.against.resolve(), Path(__file__).resolve().parents[1]] * 3:
        print(f"\n{checkout}", flush=True)
        command = [sys.executable, __file__, *flags, *arguments.networks]
        done = subprocess.run(command, env=os.environ | {"CHECKOUT": str(checkout)})
        if done.returncode:
            return done.returncode
    return 0


def networks(device: str, seconds: float, names: list[str]) -> None:
    fused, *others = OPTIMIZERS
    ratios = [f"{name} / {fused}" for name in others]
    heads = [f"{name}: launches, ms, GB/s" for name in MOVED] * (device == "cuda")
    table(["network", "parameters", f"{fused}, ms", *ratios, "SFW / SGD", *heads])
    for name in names:
        model = NETWORKS[name]().to(device)
        polytopes, balls = (
            build_constraints(model, kind, tau=30.0, mode="diameter")
            for kind in ("k_sparse_constraints", "l2_constraints")
        )
        make_feasible(model, polytopes)
        parameters = list(model.parameters())
        for p in parameters:
            p.grad = torch.randn_like(p)
        steps = {n: make(parameters, polytopes, balls).step for n, make in OPTIMIZERS.items()}
        times = dict(zip(steps, time_in_turns([*steps.values()], seconds, device), strict=True))
        count = sum(p.numel() for p in parameters)
        numbers = [times[n] / times[fused] for n in others]
        cells = [f"{number:.2f}" for number in (*numbers, times["SFW"] / times["SGD"])]
        if device == "cuda":
            cells += [launches(steps[n], count * moved) for n, moved in MOVED.items()]
        row(name, f"{count:,}", f"{times[fused] * 1e3:.2f}", *cells)


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


if __name__ == "__main__":
    main()
