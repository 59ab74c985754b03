#!/usr/bin/env python3
"""Time training: throughput against a plain loop, the parts of a step, batch sizes, SFW-Init.

The plain loop is what a tutorial has: torchvision's transforms on one image at a time, a DataLoader
with two workers, torch.optim.SGD. Images are random, of CIFAR-10's size. On the CPU, or with
--gpu N on that CUDA device.
"""

import argparse
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, row, table

from constraints import Region, build_constraints, make_feasible
from models import ARCHITECTURES, build_model
from optim import SFW, sfw_init
from train_prune import train_step
from utils.compute.device import autocast, compiled, pick_device, placed
from utils.compute.timing import synchronise, time_in_turns
from utils.datasets import DATASETS
from utils.datasets.augment import crop_and_flip
from utils.datasets.batches import Batches
from utils.process.errors import exit_status, reason
from utils.train.captured_step import CapturedStep

CIFAR10 = DATASETS["cifar10"]
BATCH_SIZE = 128
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
PRECISIONS = ("fp32", "bf16")
INIT_ITERATIONS = 4
PRUNED_TO = 0.9  # the sparsity of pruned steps
VARIANTS = ("captured", "captured, plain SFW", "pruned steps", "eager", "captured and compiled")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", type=int, default=-1, help="CUDA device (default: -1, the CPU)")
    parser.add_argument("--steps", type=int, default=4, help="steps that count (default: 4)")
    text = "only images/s of this network, with all kinds of steps"
    parser.add_argument("--variants", choices=ARCHITECTURES, metavar="NAME", help=text)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.plain:
        print(plain_throughput(arguments.gpu, arguments.steps))
        return 0
    return exit_status(lambda: measure(pick_device(arguments.gpu), arguments))


def measure(device: torch.device, arguments: argparse.Namespace) -> None:
    print(f"\n{describe(device.type)}\n")
    all_measured = (throughput, parts, batch_sizes, initialisation)
    if arguments.variants:
        all_measured = (partial(variants, arguments.variants),)
    for measured in all_measured:
        measured(device, max(1, arguments.steps))
        print()


def throughput(device: torch.device, steps: int) -> None:
    """The plain loop runs in a process of its own, as it would; the two take turns."""
    command = [sys.executable, __file__, "--plain", "--steps", str(steps)]
    command += ["--gpu", str(-1 if device.index is None else device.index)]
    table(["ResNet18, batch 128", "images/s", "to plain loop"])
    # On a GPU, a run captures its steps; others are shown for comparison.
    kinds = ("captured", "eager", "captured and compiled") if device.type == "cuda" else ("",)
    rates: dict[str, list[float]] = {}
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rates.setdefault("plain loop", []).append(float(done.stdout))
        for precision, kind in product(PRECISIONS, kinds):
            found = our_throughput(device, precision, BATCH_SIZE, steps, kind)
            rates.setdefault(f"{precision} {kind}".strip(), []).append(found)
    for name, found in rates.items():
        row(name, f"{median(found):.0f}", f"{median(found) / median(rates['plain loop']):.2f}")


def variants(arch: str, device: torch.device, steps: int) -> None:
    """One that fails is named, and the others are measured."""
    table([f"{arch}, batch {BATCH_SIZE}", "images/s"])
    kinds = VARIANTS if device.type == "cuda" else ("eager", "pruned steps")
    for kind, precision in product(kinds, reversed(PRECISIONS)):
        try:
            cell = f"{our_throughput(device, precision, BATCH_SIZE, steps, kind, arch):.0f}"
        except Exception as error:  # of any type: of the compiler, the driver
            cell = reason(error)
        row(f"{precision} {kind}", cell)


class RandomImages(Dataset):
    """As torchvision's own data sets: one image at a time, through Pillow and the transforms."""

    def __init__(self, count: int) -> None:
        from torchvision import transforms  # other parts do without it

        augmentation = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
        normalisation = [transforms.ToTensor(), transforms.Normalize(CIFAR10.mean, CIFAR10.std)]
        steps = [transforms.ToPILImage(), *augmentation, *normalisation]
        self.transform = transforms.Compose(steps)
        self.images = random_images(count).permute(0, 2, 3, 1).numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), index % CIFAR10.classes


def plain_throughput(gpu: int, steps: int) -> float:
    """Images a second of the plain loop, from its third step on."""
    device = torch.device("cpu" if gpu < 0 else f"cuda:{gpu}")
    images = RandomImages((steps + 2) * BATCH_SIZE)
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=2)
    model = build_model("ResNet18", CIFAR10.classes, 3, 32).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step, (inputs, targets) in enumerate(loader):
        if step == 2:
            synchronise(device.type)
            start = time.perf_counter()
        loss = F.cross_entropy(model(inputs.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return steps * BATCH_SIZE / (time.perf_counter() - start)


def our_throughput(
    device: torch.device,
    precision: str,
    batch_size: int,
    steps: int,
    kind: str = "",
    arch: str = "ResNet18",
) -> float:
    """Images a second of train_prune.py's steps, once the first ones are taken.

    `kind` is one of VARIANTS, or "" for a run's own steps.
    """
    model, regions = prepared(device, precision, arch)
    optimizer = SFW(model.parameters(), regions, fused=False if "plain SFW" in kind else None)
    network = compiled(model, batch_size) if "compiled" in kind else model
    first, steps = (20, max(steps, 200)) if device.type == "cuda" else (2, steps)
    batches = our_batches(device, batch_size, first + steps)
    step = partial(train_step, model, network, optimizer, precision)
    sparsity = PRUNED_TO if kind == "pruned steps" else 0.0
    if device.type == "cuda" and kind != "eager":
        step = CapturedStep(step, optimizer, batch_size, device)
    for taken, (inputs, targets) in enumerate(batches):
        if taken == first:
            synchronise(device.type)
            start = time.perf_counter()
        step(inputs, targets, 1.0, sparsity)
    synchronise(device.type)
    return steps * batch_size / (time.perf_counter() - start)


def parts(device: torch.device, steps: int) -> None:
    table(["part of a step of ResNet18, batch 128", *PRECISIONS])
    shares = [step_parts(device, precision, steps) for precision in PRECISIONS]
    for part in shares[0]:
        row(part, *(f"{share[part]:.1%}" for share in shares))


def step_parts(device: torch.device, precision: str, steps: int) -> dict[str, float]:
    """The fraction of a step's time that each part takes; the device is waited for after each."""
    model, regions = prepared(device, precision)
    optimizer = SFW(model.parameters(), regions)
    batches = iter(our_batches(device, BATCH_SIZE, steps + 2))
    taken: dict[str, float] = {}
    now = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal now
        synchronise(device.type)
        before, now = now, time.perf_counter()
        taken[part] = taken.get(part, 0.0) + now - before

    for step in range(steps + 2):
        if step == 2:
            taken.clear()
        inputs, targets = next(batches)
        lap("data")
        with autocast(device, precision):
            loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        lap("forward and backward")
        optimizer.step()
        lap("SFW's step")
    return {part: seconds / sum(taken.values()) for part, seconds in taken.items()}


def batch_sizes(device: torch.device, steps: int) -> None:
    table(["ResNet18, images/s, batch", *map(str, BATCH_SIZES)])
    counts = [(size, max(1, steps * BATCH_SIZE // size)) for size in BATCH_SIZES]
    for precision in PRECISIONS:
        rates = (our_throughput(device, precision, size, count) for size, count in counts)
        row(precision, *(f"{rate:.0f}" for rate in rates))


def initialisation(device: torch.device, steps: int) -> None:
    table(["SFW-Init", "forward and backward, ms", "iteration / forward and backward"])
    for arch, entry in ARCHITECTURES.items():
        model, regions = prepared(device, "fp32", arch, entry.image_size or 32)
        halves = our_batches(device, BATCH_SIZE // 2, 3)
        three = [(inputs, targets) for inputs, targets in halves]
        whole = [torch.cat(tensors) for tensors in zip(*three[:2], strict=True)]
        init = partial(sfw_init, model, three, regions, iterations=INIT_ITERATIONS)
        timed = [partial(forward_backward, model, *whole), init]
        plain, ours = time_in_turns(timed, steps, device.type)
        row(arch, f"{plain * 1e3:.1f}", f"{ours / INIT_ITERATIONS / plain:.2f}")


def forward_backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()


def prepared(
    device: torch.device, precision: str, arch: str = "ResNet18", side: int = 32
) -> tuple[nn.Module, list[Region]]:
    model = placed(build_model(arch, CIFAR10.classes, 3, side), device).train()
    regions = build_constraints(model, "k_sparse_constraints", tau=15.0, mode="diameter")
    make_feasible(model, regions)
    return model, regions


def our_batches(device: torch.device, batch_size: int, count: int) -> Batches:
    images = random_images(batch_size * count).to(device)
    labels = torch.arange(len(images), device=device) % CIFAR10.classes
    generator = torch.Generator(device).manual_seed(0)
    return Batches(images, labels, batch_size, CIFAR10.mean, CIFAR10.std, crop_and_flip, generator)


def random_images(count: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
    return torch.from_numpy(pixels)


if __name__ == "__main__":
    sys.exit(main())
