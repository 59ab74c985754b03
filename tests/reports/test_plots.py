"""Pictures: what they show, their limits, ticks and headings."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from runs import DIGITS
from torch import nn

from utils.prune.weights.ranking import RATIOS as DEFAULT_RATIOS
from utils.reports.headings import Heading
from utils.reports.plots import (
    AS_PRUNED,
    plot_accuracies,
    plot_distribution,
    plot_layer_sparsity,
    plot_scales,
    plot_slicing,
    plot_training,
)

pytestmark = pytest.mark.usefixtures("drawing")

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
def curves_of(drawn):
    """curves_of(curves) gives the axes of plot_accuracies for these."""
    return lambda curves, heading=RUN: drawn(plot_accuracies, curves, heading)[0]


def one(accuracies, ratios=RATIOS):
    """The curves of one network, as pruned."""
    return {("", AS_PRUNED): [dict(zip(ratios, accuracies, strict=True))]}


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(
    "accuracies", [[13.6, 13.5, 13.2, 12.0, 11.0, 10.0], [99.1, 99.1, 99.0, 99.0, 98.7, 97.9]]
)
def test_limits_show_all_accuracies_and_little_else(accuracies, curves_of):
    low, high = curves_of(one(accuracies)).get_ylim()
    assert low < min(accuracies) and max(accuracies) < high
    assert high - low <= 1.2 * (max(accuracies) - min(accuracies)) + 1


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        (DEFAULT_RATIOS, "0 30 50 70 80 90 95 97 98 99"),
        ([0.5, 0.9, 0.995, 0.999], "50 70 80 90 95 97 98 99 99.5 99.9"),
        ([0.25, 0.29], "0 30"),
        ([0.3], "30"),
        ([0.99, 0.9999999], "99 99.5 99.9 99.99 99.999 99.99999"),
    ],
)
def test_ticks_are_fixed_and_enclose_the_ratios(ratios, expected, curves_of):
    axes = curves_of(one([90.0] * len(ratios), ratios))
    axes.figure.draw_without_rendering()
    labels = [text for text in axes.get_xticklabels() if text.get_text()]
    assert " ".join(text.get_text() for text in labels) == expected
    boxes = [text.get_window_extent() for text in labels]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    first, last = axes.get_xlim()  # what is left: more weights are removed to the right
    assert first > 100 * (1 - ratios[0]) and 100 * (1 - ratios[-1]) > last


def test_the_heading_stands_above_and_below_and_is_no_formula(curves_of):
    heading = Heading("Mlp on $x_1$: " + "SFW, " * 40, "tau 5,  " * 60)
    figure = curves_of(one([9.0] * len(RATIOS)), heading).figure
    figure.draw_without_rendering()
    title, settings = figure.texts
    for text in (title, settings):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert title.get_text().replace("\n", " ") == heading.title.strip()
    axes = figure.axes[0].get_tightbbox()
    assert settings.get_window_extent().y1 < axes.y0 < axes.y1 < title.get_window_extent().y0


def test_no_accuracy_is_called_that_of_the_dense_network_unless_it_is(curves_of):
    assert legend_of(curves_of(one([90.0, 80.0], [0.9, 0.99]))) == ["as pruned"]
    dense = legend_of(curves_of(one([90.0, 80.0], [0, 0.99])))
    assert dense == ["nothing removed: 90.00 %", "as pruned"]
    assert legend_of(curves_of(one([None, 80.0], [0, 0.99])))[0] == "as pruned"


def test_patterns_stand_in_order_though_curves_have_some_of_them(curves_of):
    accuracies = {"dense": 90.0, "2:4": 80.0, "4:8": 85.0, "1:4": 70.0}
    few, all_ = (dict(list(accuracies.items())[::step]) for step in (3, 1))
    axes = curves_of({("few", AS_PRUNED): [few], ("all", AS_PRUNED): [all_]})
    axes.figure.canvas.draw()
    assert [text.get_text() for text in axes.get_xticklabels()] == [*accuracies]


def test_a_curve_without_differences_is_drawn(curves_of):
    low, high = curves_of(one([10.0] * len(RATIOS))).get_ylim()
    assert low < 10 < high


def test_a_curve_has_a_gap_and_says_so_where_outputs_are_not_finite(curves_of):
    axes = curves_of(one([90.0, None, 80.0], [0.5, 0.8, 0.9]))
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]
    assert legend_of(axes)[-1] == "gap: outputs are not finite"


def test_a_comparison_shows_means_and_ranges_at_the_ratios_of_all_runs(curves_of):
    runs = [{0.0: 90.0, 0.5: 70.0, 0.9: 50.0, 0.97: 20.0}, {0.0: 92.0, 0.5: 80.0, 0.9: 30.0}]
    axes = curves_of({("SFW", AS_PRUNED): runs, ("SGD", AS_PRUNED): runs[:1]})
    (mean, alone, *_), (band, _) = axes.lines, axes.collections
    assert mean.get_xdata() == pytest.approx([100, 50, 10])
    assert list(mean.get_ydata()) == [91, 75, 40]
    assert list(alone.get_ydata()) == [90, 70, 50, 20]
    vertices = band.get_paths()[0].vertices
    assert {y for x, y in vertices if x == 50} == {70, 80}


def test_a_method_keeps_its_look_and_is_dashed_as_pruned_and_solid_when_corrected(curves_of):
    runs = [{0.5: 90.0, 0.9: 50.0}]
    axes = curves_of({(m, c): runs for m in ("a", "b") for c in (AS_PRUNED, "recalibrated")})
    looks = [(x.get_color(), x.get_marker(), x.get_linestyle()) for x in axes.lines[:4]]
    (colour, marker, _), _, (other, another, _), _ = looks
    assert colour != other and marker != another
    assert looks == [
        (c, m, s) for c, m in ((colour, marker), (other, another)) for s in ["--", "-"]
    ]
    assert legend_of(axes) == ["a", "b", "as pruned", "recalibrated"]


def test_the_legend_of_many_methods_lies_beside_the_axes_and_in_the_picture(curves_of):
    runs = [dict.fromkeys(DEFAULT_RATIOS, 90.0)]
    axes = curves_of({(f"method {i}", AS_PRUNED): runs for i in range(25)})
    axes.figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    assert axes.get_window_extent().x1 <= legend.x0 and legend.x1 <= axes.figure.bbox.width
    assert legend.y0 >= 0


def test_time_is_drawn_beside_accuracy_with_the_dense_network_on_the_left(drawn):
    measured = [
        {"removed": removed}
        | {f"{dense}milliseconds_{n}": value for n in (1, 128) for dense, value in times.items()}
        for removed, times in ((0, {"": 4, "dense_": 4}), (0.5, {"": 3, "dense_": 5}))
    ]
    by_removed, by_time = drawn(plot_slicing, one([90.0, 70.0], [0, 0.5]), measured, RUN)
    assert list(by_removed.lines[0].get_xdata()) == [100, 50]
    for dots in by_time.lines:
        assert dots.get_xydata().tolist() == [[100, 90], [60, 70]]
    assert by_time.get_xlim()[0] > by_time.get_xlim()[1] == 0
    assert legend_of(by_time) == ["as pruned, batch of 1", "as pruned, batch of 128"]


@pytest.mark.parametrize(
    ("end", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_a_picture_has_the_format_of_its_name(end, start, tmp_path):
    plot_scales(tmp_path / f"a.{end}", {"a.weight": 0.5}, RUN)
    assert (tmp_path / f"a.{end}").read_bytes().startswith(start)


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
    plot_accuracies(path, {(name, AS_PRUNED): [{0.0: 90.0, 0.9: 50.0}]}, Heading(name, name))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_tables_are_written_and_one_line_says_so(
    quick, trained, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = quick("test_prune.py", *DIGITS, "--output_dir", trained)
    assert status == 1 and "error: pictures need matplotlib" in err
    assert "Traceback" not in err and list(trained.glob("saved_logs/SFW_prune_test/*.csv"))
