"""Networks whose channels are hard to follow, for the tests of slicing."""

import torch
import torch.nn.functional as F
from torch import nn


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
