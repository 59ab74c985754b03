#!/usr/bin/env python3
"""Time training, in images a second, beside a plain loop.

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
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, row, table

from constraints import build_constraints, make_feasible
from models import ARCHITECTURES, build_model
from optim import SFW
from train_prune import train_step
from utils.compute.device import compiled, pick_device, placed
from utils.compute.timing import synchronise
from utils.datasets import DATASETS
from utils.datasets.augment import crop_and_flip
from utils.datasets.batches import Batches
from utils.process.errors import exit_status, reason
from utils.train.captured_step import CapturedStep

CIFAR10 = DATASETS["cifar10"]
BATCH_SIZE = 128
PRECISIONS = ("bf16", "fp32")
PRUNED_TO = 0.9  # the sparsity of pruned steps
# A run on a GPU captures its steps; the other kinds are shown for comparison.
ON_GPU = ("captured", "captured, plain SFW", "pruned steps", "eager", "captured and compiled")
ON_CPU = ("eager", "pruned steps")
PLAIN_LOOP, ROUNDS = "plain loop", 2


def measure(device: torch.device, steps: int, arch: str, beside: bool) -> None:
    """Images a second of each kind of steps, and `beside` the plain loop, as ratios to that.

    Medians over rounds in which the kinds take turns. One that fails is named.
    """
    print(f"\n{describe(device.type)}\n")
    kinds = ON_GPU if device.type == "cuda" else ON_CPU
    timed = {PLAIN_LOOP: partial(plain_throughput, device, steps, arch)} if beside else {}
    for kind, precision in product(kinds, PRECISIONS):
        timed[f"{precision} {kind}"] = partial(our_throughput, device, precision, steps, kind, arch)
    rates: dict[str, list[float]] = {name: [] for name in timed}
    failed, rounds = {}, ROUNDS if beside else 1
    table([f"{arch}, batch {BATCH_SIZE}", "images/s", *["to plain loop"] * beside])
    for number, name in product(range(1, rounds + 1), timed):
        found = rates[name]
        try:
            found.append(timed[name]())
        except Exception as error:  # of any type: of the compiler, the driver
            failed[name] = reason(error)
        if number < rounds:
            continue
        cells = [failed[name]] if name in failed else [f"{median(found):.0f}"]
        if beside and not failed.keys() & {name, PLAIN_LOOP}:
            cells.append(f"{median(found) / median(rates[PLAIN_LOOP]):.2f}")
        row(name, *cells)


def one_by_one(images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """A batch as torchvision makes it: of single images, through Pillow and the transforms."""
    from torchvision import transforms as t  # the other parts do without it

    normalised = [t.ToTensor(), t.Normalize(CIFAR10.mean, CIFAR10.std)]
    steps = [t.ToPILImage(), t.RandomCrop(32, 4), t.RandomHorizontalFlip(), *normalised]
    transform = t.Compose(steps)
    inputs = torch.stack([transform(image) for image in images])
    return inputs, torch.arange(len(images)) % CIFAR10.classes


def plain_throughput(device: torch.device, steps: int, arch: str) -> float:
    """Images a second of the plain loop, in a process of its own, as it would be."""
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        return other.submit(plain_loop, device, steps, arch).result()


def plain_loop(device: torch.device, steps: int, arch: str) -> float:
    """Images a second from its third step on."""
    images = list(random_images((steps + 2) * BATCH_SIZE).permute(0, 2, 3, 1).numpy())
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=2, collate_fn=one_by_one)
    model = build_model(arch, CIFAR10.classes, 3, 32).to(device).train()
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


def our_throughput(device: torch.device, precision: str, steps: int, kind: str, arch: str) -> float:
    """Images a second of train_prune.py's steps, of a kind, once the first ones are taken."""
    model = placed(build_model(arch, CIFAR10.classes, 3, 32), device).train()
    regions = build_constraints(model, "k_sparse_constraints", tau=15.0, mode="diameter")
    make_feasible(model, regions)
    optimizer = SFW(model.parameters(), regions, fused=False if "plain SFW" in kind else None)
    network = compiled(model, BATCH_SIZE) if "compiled" in kind else model
    first, steps = (20, max(steps, 200)) if device.type == "cuda" else (2, steps)
    images = random_images(BATCH_SIZE * (first + steps)).to(device)
    labels = torch.arange(len(images), device=device) % CIFAR10.classes
    draws = torch.Generator(device).manual_seed(0)
    batches = Batches(images, labels, BATCH_SIZE, CIFAR10.mean, CIFAR10.std, crop_and_flip, draws)
    step = partial(train_step, model, network, optimizer, precision)
    sparsity = PRUNED_TO if kind == "pruned steps" else 0.0
    if device.type == "cuda" and kind != "eager":
        step = CapturedStep(step, optimizer, BATCH_SIZE, device)
    for taken, (inputs, targets) in enumerate(batches):
        if taken == first:
            synchronise(device.type)
            start = time.perf_counter()
        step(inputs, targets, 1.0, sparsity)
    synchronise(device.type)
    return steps * BATCH_SIZE / (time.perf_counter() - start)


def random_images(count: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
    return torch.from_numpy(pixels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", type=int, default=-1, help="CUDA device (default: -1, the CPU)")
    parser.add_argument("--steps", type=int, default=4, help="steps that count (default: 4)")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="ResNet18", metavar="NAME")
    text = "without the plain loop, which needs torchvision"
    parser.add_argument("--alone", action="store_true", help=text)
    o = parser.parse_args()
    sys.exit(exit_status(lambda: measure(pick_device(o.gpu), o.steps, o.arch, not o.alone)))
