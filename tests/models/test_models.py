"""The networks: parameter names, arithmetic, and input sizes."""

import json

import numpy as np
import pytest
import torch

from models import ARCHITECTURES, build_model
from utils.compute.measure import THRESHOLDS, count_above
from utils.datasets import DATASETS
from utils.prune.ranking import RATIOS, MagnitudeRanking

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


@pytest.mark.parametrize("arch", INPUTS)
def test_entries_above_thresholds_are_the_authors(arch, golden):
    file = np.load(golden("models.npz"))
    model = closed_form_model(arch)
    assert sum(p.numel() for p in model.parameters()) == file[f"{arch}_total"]
    assert list(THRESHOLDS) == pytest.approx([10.0**-i for i in range(-1, 10)])
    np.testing.assert_allclose(count_above(model), file[f"{arch}_above"], atol=1)


@pytest.mark.parametrize("arch", INPUTS)
def test_pruned_models_are_the_authors_up_to_ties(arch, golden):
    file = np.load(golden("models.npz"))
    model, images = closed_form_model(arch), closed_form_images(arch)
    ranking = MagnitudeRanking(model)
    for i, ratio in enumerate(RATIOS):
        kept = len(ranking.weights) - ranking.prune(ratio)
        # The published pruning keeps one entry too many, and all that tie with it.
        assert 0 <= file[f"{arch}_kept"][i] - kept <= 1e-5 * len(ranking.weights) + 1
        with torch.no_grad():
            logits = model(images)
        np.testing.assert_allclose(logits, file[f"{arch}_pruned_logits"][i], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_takes_every_data_set(arch, data):
    info = DATASETS[data]
    side = ARCHITECTURES[arch].image_size or info.input_side or info.side
    model = build_model(arch, info.classes, info.channels, side)
    images = torch.randn(2, info.channels, side, side)
    assert model(images).shape == (2, info.classes)


@pytest.mark.parametrize("side", [28, 33, 64])
def test_resnet18_takes_images_of_other_sizes(side):
    assert build_model("ResNet18", 7, 1, side)(torch.randn(2, 1, side, side)).shape == (2, 7)


def test_unknown_network_and_wrong_image_size_are_named():
    with pytest.raises(ValueError, match="Nothing"):
        build_model("Nothing", 10, 3, 32)
    with pytest.raises(ValueError, match="32, not 28"):
        build_model("VGG16", 10, 3, 28)
