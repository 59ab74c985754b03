"""Pictures that tests write to files."""

import numpy as np
from PIL import Image


def picture(shade=0, size=(32, 32), mode="RGB"):
    """A smooth picture, since photos are."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = [np.sin(x + shade), np.cos(y * shade), np.sin(x * y)]
    return Image.fromarray((127 * (1 + np.stack(waves, 2))).astype(np.uint8)).convert(mode)
