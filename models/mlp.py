"""The paper's multi-layer perceptron."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Two hidden layers of 128 units with ReLU, on the flattened image."""

    def __init__(self, num_classes: int, color_channel: int, image_size: int) -> None:
        super().__init__()
        self.linear_layer_0 = nn.Linear(color_channel * image_size**2, 128)
        self.linear_layer_1 = nn.Linear(128, 128)
        self.linear_layer_2 = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.linear_layer_0(images.flatten(1)).relu()
        hidden = self.linear_layer_1(hidden).relu()
        return self.linear_layer_2(hidden)
