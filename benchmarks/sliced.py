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
from utils.compute.device import keep_freed_memory
from utils.compute.timing import time_in_turns
from utils.process.errors import RunError, exit_status, require
from utils.prune.channels.slicing import ChannelRanking
from utils.settings.config import Config
from utils.settings.fields import path

RATIOS, BATCHES, SECONDS = (0.3, 0.5, 0.75), (128, 1), 10


def in_onnxruntime(model: nn.Module, images: torch.Tensor, file: Path) -> Callable[[], object]:
    """A forward pass of the exported network, with as many threads as PyTorch has."""
    import onnxruntime

    channels, side = images.shape[1:3]
    described = InputImages(channels, side, mean=(0.0,) * channels, std=(1.0,) * channels)
    try:
        write_pruned(file, "onnx", model, described, {})
    except ValueError as error:
        raise RunError(f"benchmarks/sliced.py: {error}; give another network") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    return partial(session.run, None, {"images": images.numpy()})


@torch.no_grad()
def times(dense: nn.Module, sliced: nn.Module, images: torch.Tensor) -> list[float]:
    """Median seconds of the dense and the sliced network, in PyTorch and then in onnxruntime."""
    found = time_in_turns([partial(dense, images), partial(sliced, images)], SECONDS, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder, "dense.onnx"), Path(folder, "sliced.onnx"))
        pairs = zip((dense, sliced), files, strict=True)
        steps = [in_onnxruntime(model, images, file) for model, file in pairs]
        return found + time_in_turns(steps, SECONDS, "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_path", type=path, metavar="FILE", help="a trained model")
    text = "with --model_path: a network of one's own"
    parser.add_argument("--arch", metavar="MODULE:FACTORY", help=text)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, metavar="X")
    parser.add_argument("--round_to", type=int, default=8, metavar="N", help="as of test_prune.py")
    options = parser.parse_args()
    require("benchmarks/sliced.py", "torch_pruning", "onnx", "onnxscript", "onnxruntime")
    keep_freed_memory()
    config = Config()
    if options.model_path is None:
        model = new_model(config)
    else:
        own = {} if options.arch is None else {"arch": options.arch}
        trained = load_model_file(options.model_path, own)
        config, model = trained.config, trained.model
    model = model.eval().to(memory_format=torch.channels_last)
    side, generator = config.image_size, torch.Generator().manual_seed(0)
    images = torch.randn(max(BATCHES), config.color_channel, side, side, generator=generator)
    ranking = ChannelRanking(model, images[:2], round_to=options.round_to)
    print(describe("cpu") + "\n")
    columns = [
        (f"{name}: dense, sliced, ms", "dense / sliced") for name in ("PyTorch", "onnxruntime")
    ]
    table(["multiply-adds removed", "batch", *columns[0], *columns[1]])
    for ratio in options.ratios:
        sliced, removed = ranking.slice(ratio)
        for batch in BATCHES:
            a, b, c, d = (1000 * seconds for seconds in times(model, sliced, images[:batch]))
            ratios = f"{a:.2f}, {b:.2f}", f"{a / b:.2f}", f"{c:.2f}, {d:.2f}", f"{c / d:.2f}"
            row(f"{removed:.1%}", str(batch), *ratios)


if __name__ == "__main__":
    sys.exit(exit_status(main))
