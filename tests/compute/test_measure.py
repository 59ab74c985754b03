"""What is measured of a network."""

import numpy as np
import pytest
import torch
from closed_form import INPUTS, closed_form_model
from own_networks import Cosine
from torch import nn

from utils.compute.measure import (
    THRESHOLDS,
    Accuracy,
    count_above,
    evaluate,
    multiply_adds,
    not_finite,
)


def test_accuracy_is_over_images_and_in_evaluation_mode():
    """Batches of two and one: a mean over batches would give 75 %, and dropout almost nothing."""
    model = nn.Sequential(nn.Dropout(1.0), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
    rows = torch.eye(2)
    batches = [(rows, torch.tensor([0, 0])), (rows[:1], torch.tensor([0]))]
    assert evaluate(model.train(), batches) == Accuracy(100 * 2 / 3)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_count_as_wrong(broken):
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    rows = torch.tensor([[1.0, 0.0], [broken, 0.0]])
    assert evaluate(model, [(rows, torch.tensor([0, 0]))]) == Accuracy(50, 1)


def test_without_any_finite_output_there_is_no_accuracy():
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, torch.inf)
    assert evaluate(model, [(torch.ones(3, 2), torch.zeros(3))]) == Accuracy(None, 3)


def test_the_first_layer_whose_output_is_not_finite_is_named():
    """In the second batch one image has no direction; later layers are not finite, too."""
    model = Cosine(2)
    nn.init.ones_(model.hidden.weight)
    nn.init.zeros_(model.hidden.bias)
    model = nn.Sequential(nn.Identity(), model, nn.Linear(2, 2))
    batches = [(torch.ones(2, 64), torch.zeros(2)), (torch.eye(2, 64), torch.zeros(2))]
    batches[1][0][1] = 0
    accuracy = evaluate(model, batches)
    assert (accuracy.not_finite, accuracy.layer) == (1, "1.head")


def test_a_layer_whose_weight_is_computed_is_named_itself():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    nn.init.zeros_(model[0].parametrizations.weight.original1)
    assert evaluate(model, [(torch.ones(3, 2), torch.zeros(3))]) == Accuracy(None, 3, "0")


def test_count_above_counts_magnitudes_strictly_above():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([-2.0, 1.0, 0.5, 0.0]))
    assert count_above(model, (2.0, 1.0, 0.5, 0.0)) == [0, 1, 2, 3]


def test_parameters_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    assert not_finite(model) == []
    with torch.no_grad():
        model[0].bias[1] = torch.inf
        model[1].weight[0, 1] = torch.nan
    assert not_finite(model) == ["0.bias", "1.weight"]


@pytest.mark.parametrize("arch", INPUTS)
def test_entries_above_thresholds_are_the_authors(arch, golden):
    file = np.load(golden("models.npz"))
    model = closed_form_model(arch)
    assert sum(p.numel() for p in model.parameters()) == file[f"{arch}_total"]
    assert list(THRESHOLDS) == pytest.approx([10.0**-i for i in range(-1, 10)])
    np.testing.assert_allclose(count_above(model), file[f"{arch}_above"], atol=1)


def test_multiply_adds_do_not_depend_on_what_is_frozen():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    inputs, projections, hidden = torch.randn(2, 5, 8), 4 * 5 * 8 * 8, 2 * 5 * 8 * 12
    for trained in (True, False):
        layer.requires_grad_(trained)
        assert multiply_adds(layer, inputs)[""] == projections + 2 * 5 * 5 * 8 + hidden
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.mkldnn.enabled


def test_multiply_adds_of_recurrent_layers_are_counted():
    counted = multiply_adds(nn.LSTM(6, 7, batch_first=True), torch.randn(2, 5, 6))
    assert counted[""] == 5 * 4 * 7 * (6 + 7)
