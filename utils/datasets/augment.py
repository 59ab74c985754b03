"""Training augmentation: one vectorised draw per image, on the images' own device.

Each function takes uint8 images (batch, channels, height, width) and the generator to draw from,
and returns the augmented images, uint8 or, where pixels were interpolated, float32 in 0 ... 255.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

CROP_PADDING = 4
CROP_CANDIDATES = 10


def crop_and_flip(images: Tensor, generator: Generator) -> Tensor:
    """Pad by 4 black pixels, crop to the original size at random, flip left to right or not."""
    count, _, height, width = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    draw = dict(size=(count,), generator=generator, device=images.device)
    tops, lefts = (torch.randint(2 * CROP_PADDING + 1, **draw) for _ in range(2))
    each = torch.arange(count, device=images.device)
    return _flip_some(windows[each, :, tops, lefts], generator)


def resized_crop_and_flip(images: Tensor, generator: Generator, side: int = 32) -> Tensor:
    """Crop 8 to 100 % of the area at an aspect of 3/4 to 4/3, resize to `side`, flip or not.

    This is Inception's augmentation (Szegedy et al., CVPR 2015).
    """
    return _flip_some(resize_crops(images, *_draw_crops(images, generator), side), generator)


# By the names of --augment. The last one returns images of the side that it is given, the others
# those of the images' own.
AUGMENTATIONS = {
    "none": None,
    "crop_flip": crop_and_flip,
    "resized_crop_flip": resized_crop_and_flip,
}


def resize_crops(
    images: Tensor, tops: Tensor, lefts: Tensor, heights: Tensor, widths: Tensor, side: int = 32
) -> Tensor:
    """Resize one crop of each image: float32 (batch, channels, side, side) in 0 ... 255.

    Bilinear with antialiasing is separable, so that each image needs one small matrix per axis.
    """
    rows = _resize_weights(tops, heights, images.shape[2], side)
    columns = _resize_weights(lefts, widths, images.shape[3], side)
    return rows.unsqueeze(1) @ images.float() @ columns.unsqueeze(1).mT


def _resize_weights(starts: Tensor, lengths: Tensor, pixels: int, side: int) -> Tensor:
    """Weights (batch, side, pixels) that resize pixels start ... start + length - 1 to `side`."""
    scale = (lengths / side).view(-1, 1, 1)
    position = torch.arange(pixels, device=starts.device) - starts.view(-1, 1, 1)
    centre = (torch.arange(side, device=starts.device).view(1, -1, 1) + 0.5) * scale - 0.5
    weights = (1 - (position - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights *= (position >= 0) & (position < lengths.view(-1, 1, 1))
    return weights / weights.sum(2, keepdim=True)


def _draw_crops(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tops, lefts, heights and widths: the first to fit of ten candidates and the whole image."""
    count, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draws = torch.rand(count, *shape, generator=generator, device=images.device)
        return low + (high - low) * draws

    area = height * width * uniform(0.08, 1, CROP_CANDIDATES)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3), CROP_CANDIDATES).exp()
    widths = F.pad((area * ratio).sqrt().round(), (0, 1), value=width)
    heights = F.pad((area / ratio).sqrt().round(), (0, 1), value=height)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.byte().argmax(1, keepdim=True)
    widths, heights = (sizes.gather(1, first).squeeze(1) for sizes in (widths, heights))
    tops = (uniform(0, 1) * (height - heights + 1)).floor()
    lefts = (uniform(0, 1) * (width - widths + 1)).floor()
    return tops, lefts, heights, widths


def _flip_some(images: Tensor, generator: Generator) -> Tensor:
    flip = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(flip, images.flip(3), images)
