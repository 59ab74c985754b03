"""Networks of one's own, as --arch own_networks:FACTORY finds them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune


class SmallViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al., ICLR 2021) of one block, with dropout.

    It has what a network of convolutions has not: parameters outside of layers, packed projections,
    LayerNorm, an embedding, and a frozen parameter.
    """

    def __init__(self, num_classes: int, color_channel: int, image_size: int) -> None:
        super().__init__()
        width, patch = 16, image_size // 4
        self.patches = nn.Conv2d(color_channel, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Embedding(17, width)
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.2, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, num_classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.cls.expand(images.shape[0], -1, -1), tokens], 1)
        return self.head(self.block(self.scale * (tokens + self.places.weight))[:, 0])


def vit(num_classes, color_channel, image_size):
    return SmallViT(num_classes, color_channel, image_size)


class Shared(nn.Module):
    """A layer used under two names, a GroupNorm, and `view`, which wants contiguous images."""

    def __init__(self, num_classes: int, color_channel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(color_channel, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.norm(self.conv(images)).relu())
        hidden = self.first(hidden.view(len(images), 16)).relu()
        return self.head(self.second(hidden).relu())


class Wrong(nn.Linear):
    """Flattens, and returns what `change` makes of its logits and mode."""

    def __init__(self, num_classes, change):
        super().__init__(64, num_classes)
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images.flatten(1)), self.training)


class Shift(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + 100


def stale(num_classes):
    """Its running means stay near 0 for thousands of steps, and should be 100."""
    norm = nn.BatchNorm1d(64, momentum=0.001)
    return nn.Sequential(Shift(), norm, nn.Linear(64, num_classes))


class CosineClassifier(nn.Linear):
    """Classifies by the angles between features and weights: not finite for features of zeros."""

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features / features.norm(dim=1, keepdim=True), self.weight)


class Cosine(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 8)
        self.head = CosineClassifier(8, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(images.flatten(1)).relu())


cosine = Cosine
not_callable = 3


def broken(num_classes):
    raise KeyError("width")


def no_module(num_classes):
    return "resnet"


def empty(num_classes):
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(num_classes))


def frozen(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)).requires_grad_(False)


def masks_alone(num_classes):
    """A frozen mask with infinite entries, and a frozen layer far outside of its region."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, num_classes))
    mask = torch.full((3, 3), -torch.inf).triu(1)
    model.mask = nn.Parameter(mask, requires_grad=False)
    nn.init.normal_(model[1].requires_grad_(False).weight)
    return model


def without_gradient(num_classes):
    class Detached(nn.Linear):
        @torch.no_grad()
        def forward(self, images):
            return super().forward(images.flatten(1))

    return Detached(64, num_classes)


class Remembering(nn.Linear):
    """Keeps, in training alone, what it has computed."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images.flatten(1))
        if self.training:
            self.kept = logits.sum()
        return logits


def remembering(num_classes):
    return Remembering(64, num_classes)


def sparse(num_classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    model[1].words = nn.Embedding(3, 4, sparse=True)
    return model


def extra_state(num_classes):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 1}

    return nn.Sequential(nn.Flatten(), Counting(64, num_classes))


def cubes(num_classes):
    """A convolution in three dimensions, whose weight has no channels-last format."""
    cube = nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 3, 3))
    return nn.Sequential(*cube, nn.Flatten(), nn.Linear(144, num_classes))


def other_size(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))


def other_classes(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def pairs(num_classes):
    return Wrong(num_classes, lambda logits, training: (logits, logits) if training else logits)


def whole_numbers(num_classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    model.count = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return model


def needs_two(num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )


def convolutions(num_classes):
    layers = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(256, num_classes))


def lazy(num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, num_classes)
    )


def leaves(num_classes):
    raise SystemExit(0)


def no_argument():
    return nn.Flatten()


class FlashAttention(nn.Linear):
    """Attention between the rows of an image, by an implementation without second derivatives."""

    def forward(self, images: Tensor) -> Tensor:
        rows = super().forward(images)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(rows, rows, rows).mean((1, 2))


def no_second_derivative(num_classes):
    return FlashAttention(8, num_classes)


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def masked(num_classes):
    model = plain()
    prune.l1_unstructured(model[1], "weight", 0.5)
    return model


def data_parallel(num_classes):
    return nn.Sequential(nn.DataParallel(plain()))


def scripted(num_classes):
    return torch.jit.script(plain())


def traced(num_classes):
    return torch.jit.trace(plain(), torch.zeros(2, 1, 8, 8))


def exported(num_classes):
    return torch.export.export(plain(), (torch.zeros(2, 1, 8, 8),))


def module_of_export(num_classes):
    return exported(num_classes).module()


def unflattened(num_classes):
    return torch.export.unflatten(exported(num_classes))


def optimised(num_classes):
    return torch.compile(plain())


shared = Shared
