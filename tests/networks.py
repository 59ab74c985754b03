"""Networks whose channels are hard to follow."""

import torch
import torch.nn.functional as F
from torch import nn

from models import ResNet18
from models.resnet import BasicBlock


class Branches(nn.Module):
    """Branches that are added and concatenated, depthwise, grouped and transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.c = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.norm = nn.BatchNorm2d(6)
        self.hidden, self.out = nn.Linear(6 * 16, 9), nn.Linear(9, 5)

    def forward(self, x):
        a = self.a(x)
        x = torch.cat([(a + self.c(a)).relu(), self.b(x).relu()], 1)
        x = self.norm(self.up(self.grouped(self.depthwise(x).relu()).relu()))
        return self.out(self.hidden(F.adaptive_avg_pool2d(x, 4).flatten(1)).relu())


class Residual(nn.Sequential):
    """Two stages of ResNet18: a residual stream through two blocks, and one that is projected."""

    def __init__(self, width=4):
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            BasicBlock(width, width, 1),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 2 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 5),
        )


class Attention(nn.Module):
    """A transformer with a class token, learned positions, four heads and LayerNorm."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.positions = (nn.Parameter(torch.randn(1, n, 16)) for n in (1, 5))
        self.block = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.out(self.norm(self.block(x))[:, 0])


class Normalised(nn.Module):
    """GroupNorm over a concatenation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.norm, self.out = nn.GroupNorm(4, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu().mean((2, 3)))


class Joined(nn.Module):
    """A depthwise convolution over a concatenation, whose two parts are one group of channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.out(self.depthwise(x).relu().mean((2, 3)))


class FixedSizes(nn.Module):
    """Code that takes the 6 channels of a layer to be there."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(192, 6), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.out(self.b(self.a(x.flatten(1)).view(-1, 2, 3).flatten(1)).relu())


class PaddedShortcut(nn.Module):
    """A shortcut whose missing channels are zeros, of which torch-pruning loses count."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 9, 1)
        self.out = nn.Linear(9, 5)

    def forward(self, x):
        x = self.a(x).relu()
        x = (self.b(x) + F.pad(x, (0, 0, 0, 0, 4, 4))).relu()
        return self.out(self.c(x).relu().mean((2, 3)))


class Recurrent(nn.Module):
    """A layer of which no score is known."""

    def __init__(self):
        super().__init__()
        self.inputs, self.lstm = nn.Linear(24, 9), nn.LSTM(9, 6, batch_first=True)
        self.hidden, self.out = nn.Linear(6, 9), nn.Linear(9, 5)

    def forward(self, x):
        x, _ = self.lstm(self.inputs(x.transpose(1, 2).flatten(2)).relu())
        return self.out(self.hidden(x[:, -1]).relu())


class Gated(nn.Module):
    """Squeeze-and-excitation, and LayerNorm over the channels of images, as in ConvNeXt."""

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), self.Norm(8), nn.Conv2d(8, 12, 1)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, x):
        x = self.b(self.norm(self.a(x))).relu()
        x = x * self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        return self.out(x.mean((2, 3)))


class Pyramid(nn.Module):
    """A feature pyramid whose levels share a head, over layers that are concatenated densely."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, 2, 1)
        self.c = nn.Conv2d(12, 8, 1)
        self.lateral, self.top = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1)
        self.head, self.out = nn.Conv2d(8, 7, 3, padding=1), nn.Linear(7, 5)

    def forward(self, x):
        low = self.a(x).relu()
        high = self.b(low).relu()
        high = self.top(self.c(torch.cat([high, F.max_pool2d(low, 2)], 1)).relu())
        low = self.lateral(low) + F.interpolate(high, scale_factor=2.0)
        return self.out(sum(self.head(level).relu().mean((2, 3)) for level in (low, high)))


class Reordered(nn.Module):
    """Code between the layers `a` and `b` that puts channels where torch-pruning expects others.

    `kind` is one of KINDS; the channels of `hidden` can be followed in all of them.
    """

    KINDS = (
        "permuted",
        "stacked",
        "last axis",
        "shuffled",
        "two of many",
        "when narrow",
        "own norm",
    )

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        inputs = {"stacked": 192, "last axis": 8}.get(kind)
        self.a = nn.Conv2d(3, 8, 3, padding=1) if inputs is None else nn.Linear(inputs, 24)
        self.second = nn.Linear(192, 24) if kind == "stacked" else None
        after = {"permuted": 128, "stacked": 48, "last axis": 576}.get(kind)
        self.b = nn.Conv2d(8, 6, 1) if after is None else nn.Linear(after, 6)
        self.hidden, self.out = nn.Linear(6, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = self.b(self.between(x))
        x = x.mean((2, 3)) if x.dim() == 4 else x
        return self.out(self.hidden(x.relu()).relu())

    def between(self, x):
        if self.kind == "stacked":
            x = x.flatten(1)
            return torch.stack([self.a(x), self.second(x)], 1).relu().flatten(1)
        x = self.a(x).relu()
        if self.kind == "permuted":
            return F.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
        if self.kind == "last axis":
            return x.flatten(1)
        if self.kind == "shuffled":
            return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        if self.kind == "two of many":
            return x[:, [0, 1, 2, 3, 4, 6, 5, 7]] if x.shape[1] == 8 else x
        if self.kind == "when narrow":
            return x.roll(8 - x.shape[1], 1)
        parts = x.reshape(len(x), 4, -1)
        return ((parts - parts.mean(2, keepdim=True)) / parts.std(2, keepdim=True)).view_as(x)


class FixedStream(nn.Module):
    """Code that takes the 6 channels that a stream of many layers adds to be there."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + block(x).view(-1, 2, 3).flatten(1)
        return self.out(x)


class OneUnit(nn.Module):
    """A layer of which all channels go together: the next one has a group for each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8)
        self.hidden, self.out = nn.Linear(256, 9), nn.Linear(9, 5)

    def forward(self, x):
        return self.out(self.hidden(self.b(self.a(x).relu()).relu().flatten(1)).relu())


class Detached(nn.Module):
    """A first layer that gradients do not reach."""

    def __init__(self):
        super().__init__()
        self.a, self.hidden, self.out = nn.Linear(192, 7), nn.Linear(7, 9), nn.Linear(9, 5)

    def forward(self, x):
        with torch.no_grad():
            x = self.a(x.flatten(1)).relu()
        return self.out(self.hidden(x).relu())


class Remembering(nn.Module):
    """It keeps what it has computed, and what it needs for as many channels as it sees first."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(192, 9), nn.Linear(9, 5)
        self.features = self.scale = None

    def forward(self, x):
        self.features = self.hidden(x.flatten(1)).relu()
        if self.scale is None:
            self.scale = torch.ones(self.features.shape[1])
        return self.out(self.features * self.scale)


class LeavesEarly(nn.Module):
    """It takes a short way on images with an entry below -1.5; those of `digits` have none."""

    def __init__(self, num_classes, color_channel, image_size):
        super().__init__()
        inputs = color_channel * image_size**2
        self.hidden, self.out = nn.Linear(inputs, 24), nn.Linear(24, num_classes)
        self.short = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        return self.short(x) if x.amin() < -1.5 else self.out(self.hidden(x).relu())


class SharedTensor(nn.Module):
    """Two layers that use one weight: when it is cut, each gets a tensor of its own."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(64, 8)
        self.b.weight = self.a.weight
        self.out = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        return self.out((self.a(x) + self.b(x) + self.c(x)).relu())


def narrow_resnet18(num_classes, color_channel, image_size):
    """ResNet18 with 4 channels in its first stage instead of 64."""
    return ResNet18(num_classes, color_channel, image_size, width=4)
