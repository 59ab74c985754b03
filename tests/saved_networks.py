"""Networks that are hard to write to a file."""

import torch
from torch import nn


class KeptByHooks(nn.Module):
    """A classifier that reads activations which forward hooks have kept."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()
        )
        self.out = nn.Linear(20, num_classes)
        self.kept = kept = {}
        for i in (2, 4):
            self.layers[i].register_forward_hook(lambda _, x, y, i=i: kept.update({i: y}))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.layers(images)
        return self.out(torch.cat([self.kept[2], self.kept[4]], 1))


class PlainLayerNorm(nn.Sequential):
    """A LayerNorm without weights: its size is in no tensor."""

    def __init__(self, num_classes: int) -> None:
        norm = nn.LayerNorm(32, elementwise_affine=False)
        layers = nn.Flatten(), nn.Linear(64, 32), norm, nn.ReLU(), nn.Linear(32, num_classes)
        super().__init__(*layers)


class BranchOnImages(nn.Module):
    """A path that depends on the values of the images, which cannot be exported."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.out(images.flatten(1))
        return 2 * logits if logits.sum() > 0 else logits


class SqueezesOne(nn.Module):
    """The logits of a single image lose their first dimension."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(images.flatten(1)).squeeze()


class HalfBuffer(nn.Module):
    """Buffers of types that NumPy lacks, or that float32 does not hold."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(64, num_classes)
        self.register_buffer("shift", torch.full((64,), 0.3, dtype=torch.bfloat16))
        self.register_buffer("factor", torch.tensor(1 / 3, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out((images.flatten(1) + self.shift) * self.factor.float())
