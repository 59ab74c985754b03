#!/usr/bin/env python3
"""Time training: throughput against a plain loop, batch sizes, SFW-Init.

The plain loop is what a tutorial has: torchvision's transforms on one image at a time, a DataLoader
with two workers, torch.optim.SGD. Images are random, of CIFAR-10's size. On the CPU, or with
--gpu N on that CUDA device.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, row, table

from constraints import Region, build_constraints, make_feasible
from models import ARCHITECTURES, build_model
from optim import SFW, sfw_init
from train_prune import train_step
from utils.compute.device import compiled, pick_device, placed
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


def measure(device: torch.device, steps: int, arch: str | None) -> None:
    print(f"\n{describe(device.type)}\n")
    of_arch = [partial(variants, arch)] if arch else []
    for measured in of_arch or (throughput, batch_sizes, initialisation):
        measured(device, steps)
        print()


def throughput(device: torch.device, steps: int) -> None:
    """The plain loop runs in a process of its own, as it would; the two take turns."""
    table(["ResNet18, batch 128", "images/s", "to plain loop"])
    # On a GPU, a run captures its steps; others are shown for comparison.
    kinds = ("captured", "eager", "captured and compiled") if device.type == "cuda" else ("",)
    rates: dict[str, list[float]] = {}
    for _ in range(2):
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            rate = other.submit(plain_throughput, device, steps).result()
        rates.setdefault("plain loop", []).append(rate)
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


def one_by_one(images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """A batch as torchvision makes it: of single images, through Pillow and the transforms."""
    from torchvision import transforms as t  # the other parts do without it

    normalised = [t.ToTensor(), t.Normalize(CIFAR10.mean, CIFAR10.std)]
    steps = [t.ToPILImage(), t.RandomCrop(32, 4), t.RandomHorizontalFlip(), *normalised]
    transform = t.Compose(steps)
    inputs = torch.stack([transform(image) for image in images])
    return inputs, torch.arange(len(images)) % CIFAR10.classes


def plain_throughput(device: torch.device, steps: int) -> float:
    """Images a second of the plain loop, from its third step on."""
    images = list(random_images((steps + 2) * BATCH_SIZE).permute(0, 2, 3, 1).numpy())
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=2, collate_fn=one_by_one)
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
    model, regions = prepared(device, arch)
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


def batch_sizes(device: torch.device, steps: int) -> None:
    table(["ResNet18, images/s, batch", *map(str, BATCH_SIZES)])
    counts = [(size, max(1, steps * BATCH_SIZE // size)) for size in BATCH_SIZES]
    for precision in PRECISIONS:
        rates = (our_throughput(device, precision, size, count) for size, count in counts)
        row(precision, *(f"{rate:.0f}" for rate in rates))


def initialisation(device: torch.device, steps: int) -> None:
    table(["SFW-Init", "forward and backward, ms", "iteration / forward and backward"])
    for arch, entry in ARCHITECTURES.items():
        model, regions = prepared(device, arch, entry.image_size or 32)
        three = list(our_batches(device, BATCH_SIZE // 2, 3))
        whole = [torch.cat(tensors) for tensors in zip(*three[:2], strict=True)]
        init = partial(sfw_init, model, three, regions, iterations=INIT_ITERATIONS)
        timed = [partial(forward_backward, model, *whole), init]
        plain, ours = time_in_turns(timed, steps, device.type)
        row(arch, f"{plain * 1e3:.1f}", f"{ours / INIT_ITERATIONS / plain:.2f}")


def forward_backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()


def prepared(
    device: torch.device, arch: str = "ResNet18", side: int = 32
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", type=int, default=-1, help="CUDA device (default: -1, the CPU)")
    parser.add_argument("--steps", type=int, default=4, help="steps that count (default: 4)")
    text = "only images/s of this network, with all kinds of steps"
    parser.add_argument("--variants", choices=ARCHITECTURES, metavar="NAME", help=text)
    o = parser.parse_args()
    sys.exit(exit_status(lambda: measure(pick_device(o.gpu), o.steps, o.variants)))
