"""ResNet18 for small images, such as 32x32 (He et al., CVPR 2016, section 4.2's input stem)."""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input, projected if its shape changes, is added."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut.extend([projection, nn.BatchNorm2d(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, BasicBlock(channels_out, channels_out, 1))


class ResNet18(nn.Module):
    """Four stages of two basic blocks; the first convolution is 3x3 and nothing is pooled early.

    `width` is the number of channels in the first stage; each further stage has twice as many.
    """

    def __init__(
        self, num_classes: int, color_channel: int, image_size: int, width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(color_channel, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.classifier(out.mean((2, 3)))


def narrow_resnet18(num_classes: int, color_channel: int, image_size: int) -> ResNet18:
    """The narrow ResNet18 of docs/results/, by --arch models.resnet:narrow_resnet18."""
    return ResNet18(num_classes, color_channel, image_size, width=16)
