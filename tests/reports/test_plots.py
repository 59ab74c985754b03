"""Pictures: what they show, their limits, ticks and headings."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from utils.prune.weights.ranking import RATIOS as DEFAULT_RATIOS
from utils.reports.headings import Heading
from utils.reports.plots import (
    plot_comparison,
    plot_distribution,
    plot_layer_sparsity,
    plot_pruning,
    plot_scales,
    plot_training,
)

RUN = Heading("run")
RATIOS = [0, 0.3, 0.6, 0.9, 0.95, 0.99]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(plot, ...) gives the axes of the picture that `plot` draws of the other arguments."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))

    def draw(plot, *arguments):
        plot(tmp_path / "a.png", *arguments)
        return saved.pop().axes

    return draw


@pytest.fixture
def panels(drawn):
    """The panels of plot_pruning, left and right, for some curves."""

    def draw(curves, ratios=RATIOS, heading=RUN):
        return drawn(plot_pruning, ratios, curves, heading)

    return draw


@pytest.mark.parametrize(
    "curves",
    [
        {"a": [13.6, 13.5, 13.2, 12.0, 11.0, 10.0]},
        {"a": [99.1, 99.1, 99.0, 99.0, 98.7, 97.9]},
        {"a": [100.0, 100.0, 90.0, 60.0, 30.0, 0.0]},
        {"a": [60.0, 59.0, 50.0, 10.0, 10.0, 10.0], "b": [60.0, 60.0, 59.0, 58.0, 50.0, 40.0]},
    ],
)
def test_limits_show_all_accuracies_and_little_else(curves, panels):
    for axes in panels(curves):
        first, last = axes.get_xlim()
        seen = [
            accuracy
            for values in curves.values()
            for ratio, accuracy in zip(RATIOS, values, strict=True)
            if first <= 100 * ratio <= last
        ]
        low, high = axes.get_ylim()
        dense = curves["a"][0]  # a line in both panels
        spread = max(*seen, dense) - min(*seen, dense)
        assert low < min(*seen, dense) and max(*seen, dense) < high
        assert high - low <= 1.2 * spread + 1


def ticks(axes):
    return [
        text.get_text() for text in sorted(axes.get_xticklabels(), key=lambda x: x.get_position())
    ]


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        (DEFAULT_RATIOS, [[f"{10 * i}" for i in range(10)], [f"{90 + i}" for i in range(10)]]),
        ([0.5, 0.9, 0.995, 0.999], [["50", "90"], ["90", "99.5", "99.9"]]),
        ([0.2, 0.5, 0.6, 0.95], [["20", "50", "60", "95"]]),
        ([0.9, 0.99, 0.999], [["90", "99", "99.9"]]),
        ([0.3], [["30"]]),
    ],
)
def test_two_panels_or_one_have_ticks_on_the_ratios(ratios, expected, panels):
    drawn = panels({"a": [90.0 - i for i in range(len(ratios))]}, ratios)
    assert [ticks(axes) for axes in drawn] == expected
    for axes, labels in zip(drawn, expected, strict=True):
        low, high = axes.get_xlim()
        assert low < float(labels[0]) and float(labels[-1]) < high < 100


@pytest.mark.parametrize(
    "ratios",
    [
        [*DEFAULT_RATIOS, 0.995],
        [*DEFAULT_RATIOS, 0.999, 0.9999],
        [0.901 + i / 1000 for i in range(90)],
        [0.0, 0.001, 0.5, 0.501, 0.502],
    ],
)
def test_labels_of_ticks_do_not_overlap(ratios, panels):
    drawn = panels({"a": [90.0] * len(ratios)}, ratios)
    drawn[0].figure.draw_without_rendering()
    for axes in drawn:
        boxes = sorted((x.get_window_extent() for x in axes.get_xticklabels()), key=lambda b: b.x0)
        assert len(boxes) >= 2
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
        assert f"{100 * ratios[-1]:.6g}" in ticks(drawn[-1])


def test_the_heading_stands_above_and_below_and_is_no_formula(panels):
    heading = Heading("Mlp on $x_1$: " + "SFW, " * 40, "tau 5,  " * 60)
    figure = panels({"a": [9.0] * len(RATIOS)}, heading=heading)[0].figure
    figure.draw_without_rendering()
    title, settings = figure.texts
    for text in (title, settings):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert title.get_text().replace("\n", " ") == heading.title.strip()
    axes = [panel.get_tightbbox() for panel in figure.axes]
    assert settings.get_window_extent().y1 < min(box.y0 for box in axes)
    assert title.get_window_extent().y0 > max(box.y1 for box in axes)


def test_no_accuracy_is_called_that_of_the_dense_network_unless_it_is(panels):
    (left,) = panels({"a": [90.0, 80.0]}, [0.9, 0.99])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a"]


def test_a_curve_without_differences_is_drawn(panels):
    for axes in panels({"a": [10.0] * len(RATIOS)}):
        low, high = axes.get_ylim()
        assert low < 10 < high


def test_a_curve_has_a_gap_and_says_so_where_outputs_are_not_finite(panels, drawn):
    left, right = panels({"a": [90.0, 80.0, None, None, None, None]})
    assert max(left.get_ylim()) < 92 and np.isnan(right.lines[1].get_ydata().astype(float)).all()
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels[1] == "a (gap: outputs are not finite)"
    (axes,) = drawn(plot_comparison, {"b": [{0.5: 90.0, 0.8: None}]}, RUN)
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True]
    assert axes.lines[0].get_label() == "b (gap: outputs are not finite)"


def test_a_comparison_shows_means_and_ranges_at_the_ratios_of_all_runs(drawn):
    runs = [{0.0: 90.0, 0.5: 70.0, 0.9: 50.0, 0.97: 20.0}, {0.0: 92.0, 0.5: 80.0, 0.9: 30.0}]
    whole, high = drawn(plot_comparison, {"SFW": runs, "SGD": runs[:1]}, RUN)
    (mean, alone), (band, _) = whole.lines, whole.collections
    assert list(mean.get_xdata()) == [0, 50, 90] and list(mean.get_ydata()) == [91, 75, 40]
    assert list(alone.get_ydata()) == [90, 70, 50]
    vertices = band.get_paths()[0].vertices
    assert {y for x, y in vertices if x == 50} == {70, 80}
    assert [list(line.get_xdata()) for line in high.lines] == [[90], [90, 97]]


def test_the_legend_of_a_comparison_lies_between_axes_and_settings(drawn):
    one, other = dict.fromkeys(DEFAULT_RATIOS, 90.0), {0.5: 80.0, 0.7: 70.0}
    curves = {f"method {i}": [one, other] if i % 2 else [one] for i in range(12)}
    axes = drawn(plot_comparison, curves, Heading("title", "tau 5,  " * 60))
    figure = axes[0].figure
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert figure.texts[-1].get_window_extent().y1 < legend.y0
    assert legend.y1 < min(panel.get_tightbbox().y0 for panel in axes)


def test_a_heat_map_marks_empty_tensors_and_its_colours_reach_the_smallest_fraction(drawn):
    axes, _ = drawn(plot_layer_sparsity, [0, 0.9], {"a": [1, 0.002], "b": [1, 0]}, RUN)
    (mesh,), (crosses,) = axes.collections, axes.lines
    assert mesh.get_array().tolist() == [[1, 0.002], [1, 0]]
    assert mesh.norm.vmin == 0.002
    assert crosses.get_xydata().tolist() == [[1.5, 1.5]]  # second ratio, second tensor


def test_a_histogram_counts_every_finite_entry_but_zeros(drawn):
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1e-30, 0.5], [-0.5, math.inf, math.nan]]))
        model.bias.copy_(torch.tensor([20.0, 0.0]))
    overall, layers, _ = drawn(plot_distribution, model, RUN)
    assert overall.get_title() == "all 8 parameters, of which 2 are exactly 0"
    counts, edges, _ = overall.patches[0].get_data()
    assert edges[0] == -10 and edges[-1] == 2  # 1e-30 is in the first bin
    assert [count for count in counts if count] == [1, 2, 1]
    shares = layers.collections[0].get_array()
    assert shares.sum(1).tolist() == pytest.approx([1, 1])


def test_bars_are_as_long_as_the_scales(drawn):
    (axes,) = drawn(plot_scales, {"a.weight": 0.5, "a.bias": 1.25}, RUN)
    assert [bar.get_width() for bar in axes.patches] == [0.5, 1.25]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2
    low, high = axes.get_ylim()
    assert low > high  # the first layer is at the top


def test_a_training_is_drawn_with_loss_and_accuracies_and_gaps_where_they_are_unknown(drawn):
    table = {"epoch": [1, 2], "loss": [2.0, 1.0], "train_accuracy": [None, 60.0]}
    loss, accuracy = drawn(plot_training, table | {"test_accuracy": [50.0, 55.0]}, RUN)
    assert [list(line.get_ydata()) for line in loss.lines] == [[2, 1]]
    training, test = accuracy.lines
    assert list(test.get_xdata()) == [1, 2] and list(test.get_ydata()) == [50, 55]
    assert math.isnan(training.get_ydata().astype(float)[0])
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training", "test"]


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    name = r"model$\nothing_{x$"
    path = tmp_path / "a.png"
    plot_pruning(path, RATIOS, {"a": [10.0] * len(RATIOS)}, Heading(name, name))
    plot_comparison(path, {name: [{0.0: 90.0, 0.9: 50.0}]}, Heading(name, name))
    assert path.read_bytes().startswith(b"\x89PNG")
