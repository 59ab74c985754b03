#!/usr/bin/env python3
"""What settings are tuned on: held-out images and, for long runs, a network that trains faster.

Writes cifar10_held_out.npz to the folder of CIFAR-10, or mnist_held_out.npz to that of MNIST: its
training images, of which the last 5,000 are for testing. train_prune.py and test_prune.py take it
as a data set of one's own, and the network by --arch experiments.tuning:narrow_resnet18.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.proxy import HELD_OUT_IMAGES, WIDTH, add_data_dir
from models import ResNet18
from utils.datasets import load_dataset
from utils.process.errors import exit_status
from utils.process.writing import atomic_write


def narrow_resnet18(num_classes: int, color_channel: int, image_size: int) -> nn.Module:
    """The network of the proxy, with 16 channels in its first stage instead of 64."""
    return ResNet18(num_classes, color_channel, image_size, width=WIDTH)


def hold_out(name: str, data_dir: Path) -> Path:
    """Write the data set with the held-out images to this folder; returns its path."""
    data = load_dataset(name, data_dir)
    images, labels = data.train_images.permute(0, 2, 3, 1).numpy(), data.train_labels.numpy()
    file_path, count = data_dir / f"{name}_held_out.npz", len(images) - HELD_OUT_IMAGES
    arrays = {"x_train": images[:count], "y_train": labels[:count]}
    arrays |= {"x_test": images[count:], "y_test": labels[count:]}
    with atomic_write(file_path, "wb") as file:
        np.savez(file, **arrays)
    return file_path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    text, names = "whose training images are held out (default: cifar10)", ("cifar10", "mnist")
    parser.add_argument("--data", choices=names, default="cifar10", help=text)
    add_data_dir(parser)
    args = parser.parse_args(argv)
    return exit_status(lambda: print(hold_out(args.data, args.data_dir)))


if __name__ == "__main__":
    sys.exit(main())
