#!/usr/bin/env python3
"""Sliced networks against the dense one, in PyTorch and in onnxruntime; in each, both take turns.

By default ResNet18 for CIFAR-10 as it is built: speed depends on the widths alone, but these differ
from those of a trained network, which --model_path takes. Runs on the CPU.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, row, table

from utils.checkpoints.formats import write_pruned
from utils.checkpoints.model_file import new_model
from utils.checkpoints.onnx_file import InputImages
from utils.checkpoints.trained_model import load_model_file
from utils.compute.device import pick_device, placed
from utils.compute.timing import time_in_turns
from utils.process.errors import exit_status, require
from utils.prune.channels.slicing import ChannelRanking
from utils.settings.config import Config
from utils.settings.fields import path

RATIOS, BATCHES, SECONDS = (0.3, 0.5, 0.75), (128, 1), 10


def in_onnxruntime(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """A forward pass of the exported network, with as many threads as PyTorch has."""
    import onnxruntime

    channels, side = images.shape[1:3]
    described = InputImages(channels, side, mean=(0.0,) * channels, std=(1.0,) * channels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        write_pruned(file, "onnx", model, described, {})
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    return partial(session.run, None, {"images": images.numpy()})


def measure(options: argparse.Namespace) -> None:
    require("benchmarks/sliced.py", "torch_pruning", "onnx", "onnxscript", "onnxruntime")
    config, device = Config(), pick_device(-1)
    model = new_model(config)
    if options.model_path is not None:
        trained = load_model_file(options.model_path, {})
        config, model = trained.config, trained.model
    model = placed(model, device, config.image_shape).eval()
    images = torch.randn(max(BATCHES), *config.image_shape)
    ranking = ChannelRanking(model, images[:2], round_to=options.round_to)
    print(describe("cpu") + "\n")
    titles = [
        (f"{name}: dense, sliced, ms", "dense / sliced") for name in ("PyTorch", "onnxruntime")
    ]
    table(["multiply-adds removed", "batch", *titles[0], *titles[1]])
    for ratio in options.ratios:
        sliced, removed = ranking.slice(ratio)
        for batch in (images[:n] for n in BATCHES):
            cells = [f"{removed:.1%}", str(len(batch))]
            for run in (partial, in_onnxruntime):
                steps = [run(network, batch) for network in (model, sliced)]
                with torch.no_grad():
                    dense, small = (1000 * x for x in time_in_turns(steps, SECONDS, "cpu"))
                cells += [f"{dense:.2f}, {small:.2f}", f"{dense / small:.2f}"]
            row(*cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_path", type=path, metavar="FILE", help="a trained model")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, metavar="X")
    parser.add_argument("--round_to", type=int, default=8, metavar="N", help="as of test_prune.py")
    options = parser.parse_args()
    sys.exit(exit_status(lambda: measure(options)))
