"""Widths of sliced networks: what a file states of them, and networks built from it."""

import pytest
import torch
from torch import nn

from utils.checkpoints.widths import set_widths, widths_of


def built():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LayerNorm(72))
    return nn.Sequential(*layers, nn.Linear(72, 5)).eval()


def sliced():
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LayerNorm(18))
    return nn.Sequential(*layers, nn.Linear(18, 5)).eval()


WIDTHS = {
    "0": {"out_channels": 2},
    "1": {"num_features": 2},
    "3": {"normalized_shape": [18]},
    "4": {"in_features": 18},
}


def test_widths_are_what_differs_from_the_network_as_built():
    assert widths_of(sliced(), built()) == WIDTHS
    assert widths_of(built(), built()) == {}


def test_numbers_that_a_layer_counts_are_no_widths():
    counting = built()
    counting[0].calls = 3  # which the network as built does not have
    counting[4].out_features = 7  # changed by the network's own code
    assert widths_of(counting, built()) == {}
    narrow = sliced()
    narrow[0].calls = 3
    assert widths_of(narrow, built()) == WIDTHS


def test_layers_without_tensors_have_widths_too():
    def network(width):
        norm = nn.LayerNorm(width, elementwise_affine=False)
        return nn.Sequential(nn.Linear(4, width), norm, nn.GroupNorm(2, width, affine=False))

    wide, narrow, images = network(8), network(6), torch.randn(3, 4)
    widths = widths_of(narrow, wide)
    assert widths["1"] == {"normalized_shape": [6]} and widths["2"] == {"num_channels": 6}
    set_widths(wide, widths, narrow.state_dict())
    wide.load_state_dict(narrow.state_dict())
    assert torch.equal(wide(images), narrow(images))


def test_a_network_of_these_widths_has_the_same_outputs():
    narrow, model = sliced(), built()
    set_widths(model, WIDTHS, narrow.state_dict())
    model.load_state_dict(narrow.state_dict())
    images = torch.randn(2, 3, 5, 5)
    assert torch.equal(model(images), narrow(images))
    assert widths_of(model, narrow) == {} and model[3].normalized_shape == (18,)


def test_widths_of_another_network_are_refused():
    for widths in ({"9": {"out_channels": 2}}, {"0": {"num_features": 2}}):
        with pytest.raises(AttributeError, match="has no attribute"):
            set_widths(built(), widths, sliced().state_dict())
