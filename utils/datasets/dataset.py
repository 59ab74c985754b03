"""The data sets, by name: held in memory as uint8, checked, and fitted to a network."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from utils.datasets.arrays import Arrays, check_arrays, check_memory
from utils.datasets.augment import AUGMENTATIONS, resized_crop_and_flip
from utils.datasets.batches import Augmentation, Batches
from utils.datasets.builtin import DATASETS
from utils.datasets.images import central_square
from utils.datasets.own import OwnData, read_own
from utils.datasets.packed import read_packed
from utils.process.errors import UserError, warn

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


@dataclass(frozen=True)
class Dataset:
    """Images, uint8 (count, channels, side, side), and labels, int64 (count,), on one device."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augmentation | None
    sha256: dict[str, str] = field(default_factory=dict)  # of "train" and "test", as they were read

    @property
    def color_channel(self) -> int:
        return self.test_images.shape[1]

    @property
    def image_size(self) -> int:
        """The side of the images that a network sees."""
        return self.test_images.shape[2]

    def to(self, device: torch.device) -> "Dataset":
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def train_batches(self, batch_size: int, generator: Generator) -> Batches:
        """Raises UserError where there are test images alone, which serve test_prune.py."""
        if not len(self.train_images):
            raise UserError("--data: has no training images; add some, or give another --data_dir")
        images, labels = self.train_images, self.train_labels
        return Batches(images, labels, batch_size, self.mean, self.std, self.augment, generator)

    def test_batches(self, batch_size: int, part: slice = slice(None)) -> Batches:
        images, labels = self.test_images[part], self.test_labels[part]
        return Batches(images, labels, batch_size, self.mean, self.std)


def load_dataset(
    name: str,
    data_dir: Path,
    color_channel: int | None = None,
    image_size: int | None = None,
    augment: str | None = None,
    resize: bool = False,
    known: OwnData | None = None,
    test_fraction: float = 0,
) -> Dataset:
    """Read the data set called `name` from `data_dir`, downloading it there if need be.

    .npz files come first, then the data set's own layout. `color_channel` 1 turns colour to grey, 3
    repeats grey; `image_size` is the side of the images that the network takes; `augment`, a key of
    AUGMENTATIONS, is for training images: None is as in the data set. Images of another side are
    enlarged by a whole multiple, padded or shrunk; with `resize`, and if they are of a data set of
    one's own, they are resized. Of that, `known` is what a model file has, whose mean and deviation
    are used, and `test_fraction` as in `read_own`. Raises UserError when the data are missing,
    damaged or of the wrong form.
    """
    data_dir = Path(data_dir).absolute()  # for messages
    if name in DATASETS:
        if test_fraction:
            raise UserError(f"--test_fraction: {name} has test images of its own; leave it out")
        try:
            arrays, info = _read(name, data_dir), DATASETS[name]
        except OSError as error:
            raise UserError(f"--data_dir {data_dir}: cannot be read ({error.strerror})") from None
    else:
        arrays, found = read_own(name, data_dir, image_size, test_fraction, known)
        if known:
            _compare(found, known, f"--data {name}: {data_dir}", test_fraction)
        info, resize = (known or found).info, True
    channels = color_channel or info.channels
    side, tensors = image_size or info.input_side or info.side, {}
    augment, fit = augment or info.augment, _resized if resize else _fit
    sha256: dict[str, str] = {}
    for split in ("train", "test"):
        labels = arrays[f"y_{split}"].astype(np.int64)
        digest = hashlib.sha256(np.ascontiguousarray(arrays[f"x_{split}"]))
        digest.update(labels)
        sha256[split] = digest.hexdigest()
        check_memory(len(arrays[f"x_{split}"]) * channels * side**2, data_dir)
        pixels = np.ascontiguousarray(arrays.pop(f"x_{split}").transpose(0, 3, 1, 2))
        images = torch.from_numpy(pixels)
        # An augmentation that resizes does it from the full images.
        if split == "test" or augment != "resized_crop_flip":
            images = fit(images, side)
        tensors[f"{split}_images"] = _set_channels(images, channels)
        tensors[f"{split}_labels"] = torch.from_numpy(labels)
    mean, std = (_channel_statistics(values, channels) for values in (info.mean, info.std))
    function = AUGMENTATIONS[augment]
    if augment == "resized_crop_flip":
        function = partial(resized_crop_and_flip, side=side)
    rest = dict(classes=info.classes, mean=mean, std=std, augment=function, sha256=sha256)
    return Dataset(**tensors, **rest)


def _read(name: str, data_dir: Path) -> Arrays:
    """The checked arrays of a data set in DATASETS, images with channels last."""
    info, place = DATASETS[name], f"{name} in {data_dir}"
    packed = read_packed(name, data_dir, test_fraction=0, alone=True)
    if packed is not None:
        arrays, place = packed
    elif name != "tiny" and any(path.is_dir() for path in data_dir.glob(f"{name}/train/*")):
        raise UserError(
            f"--data {name}: {data_dir / name} holds class folders, and {name} is another data set;"
            " give the folder a name of your own, and that as --data"
        )
    else:
        arrays = info.read(name, data_dir)
    check_arrays(arrays, (info.side, info.side, info.channels), info.classes, place)
    return arrays


def _compare(found: OwnData, known: OwnData, where: str, test_fraction: float) -> None:
    """Warn of data that differ from those that are known; raise UserError if they do not fit."""
    text = f"{where} has other data than the model was trained on: {found.difference(known)}"
    if (found.classes, found.channels) != (known.classes, known.channels):
        raise UserError(text)
    if found != known:
        again = "; --test_fraction may choose test images that it was trained on"
        warn(text + again * (test_fraction > 0))


def _fit(images: Tensor, side: int) -> Tensor:
    """Bring square images to `side`: a whole multiple enlarges, else black borders or shrinking."""
    own = images.shape[2]
    if side % own == 0:
        return images.repeat_interleave(side // own, 2).repeat_interleave(side // own, 3)
    if side > own:
        before = (side - own) // 2
        return F.pad(images, (before, side - own - before) * 2)
    return _resized(images, side)


def _resized(images: Tensor, side: int) -> Tensor:
    """Images whose shorter side is `side`, by bilinear interpolation, and their central square."""
    if images.shape[2:] == (side, side):
        return images
    height, width, top, left = central_square(*images.shape[2:], side)
    resized = torch.empty(*images.shape[:2], side, side, dtype=torch.uint8)
    for some, part in zip(images.split(1024), resized.split(1024), strict=True):
        whole = F.interpolate(some.float(), (height, width), mode="bilinear", antialias=True)
        part.copy_(whole[:, :, top : top + side, left : left + side].round_())
    return resized


def _set_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == 3 and channels == 1:
        weights = torch.tensor(LUMA).view(3, 1, 1)
        parts = images.split(1024)
        return torch.cat([(p * weights).sum(1, keepdim=True).round_().byte() for p in parts])
    return images.expand(-1, channels, -1, -1).contiguous()


def _channel_statistics(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or standard deviations after `_set_channels`."""
    if len(values) == 3 and channels == 1:
        return (sum(w * v for w, v in zip(LUMA, values, strict=True)),)
    return values * (channels // len(values))
