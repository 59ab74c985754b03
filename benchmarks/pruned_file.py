#!/usr/bin/env python3
"""Sizes of pruned ResNet18's files, and the time to load them, as ratios to the dense model's.

The dense model is built, and its state dict read by torch.load; loads take turns, and medians are
compared.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, row, table

from models import build_model
from utils.checkpoints.formats import write_pruned
from utils.checkpoints.model_file import new_model, pruned_metadata
from utils.checkpoints.onnx_file import InputImages
from utils.compute.timing import time_in_turns
from utils.prune import load_pruned
from utils.prune.weights.ranking import MagnitudeRanking
from utils.settings.config import Config

RATIOS = (0.9, 0.95, 0.99)


def load_dense(path: Path) -> None:
    model = build_model("ResNet18", 10, 3, 32)
    model.load_state_dict(torch.load(path, weights_only=True))


def main() -> None:
    print(describe("cpu") + "\n")
    config, images = Config(), InputImages(3, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = new_model(config)
    ranking = MagnitudeRanking(model)
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder, "dense.pt")
        torch.save(model.state_dict(), dense)
        loads, sizes = [partial(load_dense, dense)], [dense.stat().st_size]
        for ratio in RATIOS:
            ranking.prune(ratio)
            path = Path(folder, f"{ratio}.npz")
            write_pruned(path, "npz", model, images, pruned_metadata(config.as_dict(), {}))
            sizes.append(path.stat().st_size)
            loads.append(partial(load_pruned, path))
        times = time_in_turns(loads, 10, "cpu")
    table(["weights removed", "file, kB", "file / dense", "load, ms", "load / dense"])
    names = ["dense", *(f"{ratio:.0%}" for ratio in RATIOS)]
    for name, size, seconds in zip(names, sizes, times, strict=True):
        file = f"{size / 1000:,.0f}", f"{size / sizes[0]:.3f}"
        row(name, *file, f"{1000 * seconds:.0f}", f"{seconds / times[0]:.2f}")


if __name__ == "__main__":
    main()
