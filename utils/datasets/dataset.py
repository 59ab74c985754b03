"""The data sets, by name: held in memory as uint8, checked, and fitted to a network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from utils.datasets import readers
from utils.datasets.arrays import Arrays, check_array
from utils.datasets.augment import AUGMENTATIONS, resized_crop_and_flip
from utils.datasets.batches import Augmentation, Batches
from utils.datasets.images import central_square
from utils.datasets.own import OwnData, find_own, read_own, release_own
from utils.datasets.packed import find_packed
from utils.datasets.splits import check_splits
from utils.process.errors import UserError, notify, warn

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read. `mean` and `std` are of pixels in 0 ... 1."""

    read: Callable[[str, Path], Arrays] | None  # None for one's own
    classes: int
    channels: int
    side: int | None  # None for images of one's own that are not square
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"  # of the training images: a key of AUGMENTATIONS
    input_side: int | None = None  # of what a network sees, where that is not `side`


CIFAR10 = DatasetInfo(
    read=readers.read_torchvision, classes=10, channels=3, side=32,
    mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), augment="crop_flip",
)  # fmt: skip
DATASETS = {
    "cifar10": CIFAR10,
    "cifar100": replace(
        CIFAR10, classes=100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
    ),
    "mnist": DatasetInfo(
        readers.read_torchvision, classes=10, channels=1, side=28, mean=(0.1307,), std=(0.3081,)
    ),
    "svhn": DatasetInfo(
        readers.read_torchvision, classes=10, channels=3, side=32, mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    "tiny": DatasetInfo(
        readers.read_tiny_imagenet, classes=200, channels=3, side=64, input_side=32,
        mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
        augment="resized_crop_flip",
    ),
    "digits": DatasetInfo(
        readers.read_digits, classes=10, channels=1, side=8, mean=(0.3054,), std=(0.3760,)
    ),
}  # fmt: skip


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
    augment: Augmentation

    @property
    def color_channel(self) -> int:
        return self.test_images.shape[1]

    @property
    def image_size(self) -> int:
        """The side of the images that a network sees."""
        return self.test_images.shape[2]

    def to(self, device: torch.device) -> "Dataset":
        """The same on `device`; raises UserError if its memory does not hold it."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        try:
            return replace(self, **{k: v.to(device) for k, v in tensors.items()})
        except torch.OutOfMemoryError:
            size = sum(v.nbytes for v in tensors.values())
            raise UserError(
                f"--data: its images take {size / 1e9:,.1f} GB, more than is free on {device}; give"
                " a smaller --image_size or --gpu -1"
            ) from None

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

    .npz files, as `find_packed` finds them, come first, then the data set's own layout; for a name
    that is not in DATASETS, see `find_own`, and `read_own` for `test_fraction`. `color_channel` 1
    turns colour to grey and 3 repeats grey; `image_size` is the side of the images that the network
    takes; `augment`, a key of AUGMENTATIONS, is applied to training images. Each is as in the data
    set when None. Images of another side are enlarged by a whole multiple, padded or shrunk; with
    `resize`, and if they are of a data set of one's own, they are resized. `known` is what a model
    file has of that: its mean and deviation are used. There may be test images alone, for a data
    set of one's own if it is `known`. Raises UserError when the data are missing, damaged or of the
    wrong form.
    """
    data_dir = checked_folder(data_dir)
    if name in DATASETS:
        if test_fraction:
            raise UserError(f"--test_fraction: {name} has test images of its own; leave it out")
        info = DATASETS[name]
        arrays = _read(name, data_dir, info)
    else:
        arrays, found = _read_own(name, data_dir, image_size, test_fraction, known)
        release_own()
        where = f"--data {name}: {data_dir}"
        info = info_of(_agreeing(known or found, found, where, test_fraction))
        resize = True
    return _fitted(arrays, info, color_channel, image_size, augment, resize)


def _fitted(
    arrays: Arrays,
    info: DatasetInfo,
    color_channel: int | None,
    image_size: int | None,
    augment: str | None,
    resize: bool,
) -> Dataset:
    """The data set of these arrays, which are used up, with images as a network takes them."""
    channels = color_channel or info.channels
    side, tensors = image_size or info.input_side or info.side, {}
    augment, fit = augment or info.augment, _resized if resize else _fit
    for split in ("train", "test"):
        images = _tensor(arrays.pop(f"x_{split}"))
        # An augmentation that resizes does it from the full images.
        if split == "test" or augment != "resized_crop_flip":
            images = fit(images, side)
        tensors[f"{split}_images"] = _set_channels(images, channels)
        tensors[f"{split}_labels"] = torch.from_numpy(arrays[f"y_{split}"].astype(np.int64))
    mean, std = (_channel_statistics(values, channels) for values in (info.mean, info.std))
    function = AUGMENTATIONS[augment]
    if augment == "resized_crop_flip":
        function = partial(resized_crop_and_flip, side=side)
    return Dataset(**tensors, classes=info.classes, mean=mean, std=std, augment=function)


def describe_own(
    name: str, data_dir: Path, image_size: int | None, test_fraction: float = 0
) -> OwnData:
    """What is known of the data set of one's own called `name`; raises UserError as `read_own`.

    Its images are kept in memory for the next `load_dataset`.
    """
    _, found = _read_own(name, checked_folder(data_dir), image_size, test_fraction)
    if found.side is None and image_size is None:
        raise UserError(f"--data {name}: its images are not square; give --image_size")
    return found


def _read_own(
    name: str,
    data_dir: Path,
    image_size: int | None,
    test_fraction: float,
    known: OwnData | None = None,
) -> tuple[Arrays, OwnData]:
    source = find_own(name, data_dir, image_size, unsplit=test_fraction > 0)
    if source is None:
        raise UserError(
            f"--data {name}: choose one of {', '.join(DATASETS)}, or put {name}.npz or {name}/ with"
            f" train/ and test/ into --data_dir {data_dir}"
        )
    return read_own(source, test_fraction, known)


def info_of(own: OwnData) -> DatasetInfo:
    return DatasetInfo(None, len(own.classes), own.channels, own.side, own.mean, own.std)


def checked_folder(data_dir: Path) -> Path:
    """The absolute path of the folder, for messages, too; raises UserError unless it may be one."""
    data_dir = Path(data_dir).absolute()
    try:
        if data_dir.exists() and not data_dir.is_dir():
            raise UserError(f"--data_dir {data_dir}: is no folder; name one")
    except OSError as error:
        raise UserError(f"--data_dir {data_dir}: {error.strerror}; name a folder") from None
    return data_dir


def _read(name: str, data_dir: Path, info: DatasetInfo) -> Arrays:
    """The checked arrays of a data set in DATASETS, images with channels last.

    A file of one's own may have test images alone; the arrays for training are then empty.
    """
    packed, shape = find_packed(name, data_dir), (info.side, info.side, info.channels)
    if packed is None:
        source, arrays = f"{name} in {data_dir}", info.read(name, data_dir)
    else:
        check_splits(packed, test_fraction=0, test_alone=True)
        for note in packed.notes:
            notify(note)
        source, arrays = packed.place, packed.read()
        if "train" not in packed.kinds:
            notify(f"{source}: has {len(arrays['x_test']):,} test images and none for training")
    empty = {"x_train": np.empty((0, *shape), np.uint8), "y_train": np.empty(0, np.int64)}
    for split in [split for split in ("train", "test") if f"x_{split}" in arrays]:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        arrays[f"x_{split}"] = check_array(images, labels, split, shape, info.classes, source)
    return empty | arrays


def _agreeing(known: OwnData, found: OwnData, where: str, test_fraction: float) -> OwnData:
    """`known`, after a warning if other data were found; raises UserError if they do not fit it."""
    difference = found.difference(known)
    text = f"{where} has other data than the model was trained on: {difference}"
    if (found.classes, found.channels) != (known.classes, known.channels):
        raise UserError(text)
    if difference:
        again = "; --test_fraction may choose test images that it was trained on"
        warn(text + again * (test_fraction > 0))
    return known


def _tensor(images: np.ndarray) -> Tensor:
    """Images with channels first."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


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
        grey = [(some * weights).sum(1, keepdim=True).round_() for some in images.split(1024)]
        return torch.cat([some.byte() for some in grey])
    return images.expand(-1, channels, -1, -1).contiguous()


def _channel_statistics(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or standard deviations after `_set_channels`."""
    if len(values) == 3 and channels == 1:
        return (sum(w * v for w, v in zip(LUMA, values, strict=True)),)
    return values * (channels // len(values))
