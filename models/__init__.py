"""The paper's networks, by name, and networks of one's own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from models.factory import build_from_factory, is_factory
from models.mlp import Mlp
from models.resnet import ResNet18
from models.vgg import VGG16

__all__ = ["ARCHITECTURES", "VGG16", "Mlp", "ResNet18", "architecture", "build_model", "is_factory"]


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and the side of the square images it is made for (None: any side)."""

    build: Callable[..., nn.Module]
    image_size: int | None = None
    any_size: bool = False  # it takes other sides, too

    def takes(self, image_size: int) -> bool:
        return self.any_size or self.image_size in (None, image_size)


ARCHITECTURES = {
    "ResNet18": Architecture(ResNet18, image_size=32, any_size=True),
    "VGG16": Architecture(VGG16, image_size=32),
    "Mlp": Architecture(Mlp),
}


def architecture(arch: str) -> Architecture:
    """The entry of ARCHITECTURES called `arch`, or one for a factory MODULE:FACTORY.

    Raises ValueError when there is no such entry. No code of a factory is imported yet.
    """
    if is_factory(arch):
        return Architecture(partial(build_from_factory, arch))
    if arch not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise ValueError(f"arch must be one of {names}, or MODULE:FACTORY, not {arch!r}")
    return ARCHITECTURES[arch]


def build_model(arch: str, num_classes: int, color_channel: int, image_size: int) -> nn.Module:
    """Build the network called `arch`, its weights drawn from PyTorch's global generator.

    It takes a float tensor (batch, color_channel, image_size, image_size) and returns logits
    (batch, num_classes). `arch` is a key of ARCHITECTURES, or MODULE:FACTORY, code that is imported
    and run. Raises ValueError when there is no such network, or it takes no images of that size.
    """
    entry = architecture(arch)
    if not entry.takes(image_size):
        raise ValueError(f"{arch} takes images of size {entry.image_size}, not {image_size}")
    return entry.build(num_classes, color_channel, image_size)
