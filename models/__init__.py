"""The paper's networks, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.mlp import Mlp
from models.resnet import ResNet18
from models.vgg import VGG16

__all__ = ["ARCHITECTURES", "VGG16", "Mlp", "ResNet18", "build_model"]


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and the side of the square images it is made for (None: any side).

    With `any_size` it takes images of other sides, too.
    """

    build: Callable[..., nn.Module]
    image_size: int | None = None
    any_size: bool = False

    def takes(self, image_size: int) -> bool:
        return self.any_size or self.image_size in (None, image_size)


ARCHITECTURES = {
    "ResNet18": Architecture(ResNet18, image_size=32, any_size=True),
    "VGG16": Architecture(VGG16, image_size=32),
    "Mlp": Architecture(Mlp),
}


def build_model(arch: str, num_classes: int, color_channel: int, image_size: int) -> nn.Module:
    """Build the network called `arch`, its weights drawn from PyTorch's global generator.

    It takes a float tensor (batch, color_channel, image_size, image_size) and returns logits
    (batch, num_classes). Raises ValueError when there is no such network or it does not take
    images of that size.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, not {arch!r}")
    if not ARCHITECTURES[arch].takes(image_size):
        wanted = ARCHITECTURES[arch].image_size
        raise ValueError(f"{arch} takes images of size {wanted}, not {image_size}")
    return ARCHITECTURES[arch].build(num_classes, color_channel, image_size)
