"""Networks whose weights, and images, tests/golden/README.md defines in closed form."""

import numpy as np
import torch

from models import build_model

INPUTS = {"ResNet18": (3, 32), "VGG16": (3, 32), "Mlp": (1, 28)}


def closed_form_model(arch):
    """The model with the weights that tests/golden/README.md defines in closed form."""
    model = build_model(arch, 10, *INPUTS[arch])
    state = {}
    for j, (name, values) in enumerate(model.state_dict().items()):
        n = values.numel()
        w = np.sin(0.7311 * np.arange(n) + 1.37 * j + 0.3)
        if name.endswith("running_var"):
            w = 1 + abs(w) / 2
        elif name.endswith("weight") and values.dim() == 1:
            w = 1 + w / 10
        elif values.dim() >= 2:
            w *= np.sqrt(2 * len(values) / n)
        elif values.is_floating_point():
            w /= 20
        else:
            w *= 0
        state[name] = torch.from_numpy(w).to(values.dtype).view(values.shape)
    model.load_state_dict(state)
    return model.eval()


def closed_form_images(arch):
    channels, side = INPUTS[arch]
    flat = np.sin(0.137 * np.arange(4 * channels * side**2))
    return torch.from_numpy(flat).float().view(4, channels, side, side)
