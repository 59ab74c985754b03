"""VGG16 with BatchNorm for 32x32 images (Simonyan and Zisserman, ICLR 2015, configuration D)."""

from torch import Tensor, nn

# Output channels of each convolution; "pool" halves the image.
LAYERS = (
    64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool",
    512, 512, 512, "pool", 512, 512, 512, "pool",
)  # fmt: skip


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions and one linear layer."""

    def __init__(self, num_classes: int, color_channel: int, image_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = color_channel
        for layer in LAYERS:
            if layer == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.BatchNorm2d(layer)]
                layers.append(nn.ReLU(inplace=True))
                channels = layer
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
