"""The networks: parameter names, arithmetic, and input sizes."""

import json

import numpy as np
import pytest
import torch
from closed_form import INPUTS, closed_form_images, closed_form_model

from models import ARCHITECTURES, build_model
from utils.datasets import DATASETS


@pytest.mark.parametrize("arch", INPUTS)
def test_state_dict_has_the_authors_names_and_shapes(arch, golden):
    expected = json.loads(golden("state_dict_shapes.json").read_text())[arch]
    state = build_model(arch, 10, *INPUTS[arch]).state_dict()
    assert {name: list(values.shape) for name, values in state.items()} == expected
    assert list(state) == list(expected)


@pytest.mark.parametrize("arch", INPUTS)
def test_logits_are_the_authors(arch, golden):
    expected = np.load(golden("models.npz"))[f"{arch}_logits"]
    with torch.no_grad():
        logits = closed_form_model(arch)(closed_form_images(arch))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data", ["mnist", "tiny"])  # one channel, and three; 10 classes, and 200
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_takes_data_of_its_size(arch, data):
    info = DATASETS[data]
    side = ARCHITECTURES[arch].image_size or info.input_side or info.side
    model = build_model(arch, info.classes, info.channels, side)
    images = torch.randn(2, info.channels, side, side)
    assert model(images).shape == (2, info.classes)


@pytest.mark.parametrize("side", [28, 33, 64])
def test_resnet18_takes_images_of_other_sizes(side):
    assert build_model("ResNet18", 7, 1, side)(torch.randn(2, 1, side, side)).shape == (2, 7)


def test_narrow_resnet18_has_a_quarter_of_the_channels():
    wide = build_model("ResNet18", 10, 3, 32).state_dict()
    narrow = build_model("models.resnet:narrow_resnet18", 10, 3, 32).state_dict()
    assert {name: v.shape[0] for name, v in narrow.items() if v.ndim == 4} == {
        name: v.shape[0] // 4 for name, v in wide.items() if v.ndim == 4
    }


def test_unknown_network_and_wrong_image_size_are_named():
    with pytest.raises(ValueError, match="Nothing"):
        build_model("Nothing", 10, 3, 32)
    with pytest.raises(ValueError, match="32, not 28"):
        build_model("VGG16", 10, 3, 28)
