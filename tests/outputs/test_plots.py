"""Pictures: the limits of their axes."""

import pytest
from matplotlib.figure import Figure

from utils.outputs.plots import plot_pruning

RATIOS = [0, 0.3, 0.6, 0.9, 0.95, 0.99]


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """The panels of plot_pruning, left and right, for some curves."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))

    def draw(curves, ratios=RATIOS):
        plot_pruning(tmp_path / "a.png", ratios, curves, "run")
        return saved.pop().axes

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


def test_the_right_panel_has_ticks_on_the_ratios_from_90_on(panels):
    curve = {"a": [90.0, 80.0, 70.0, 60.0]}
    _, right = panels(curve, [0.5, 0.9, 0.995, 0.999])
    assert [text.get_text() for text in right.get_xticklabels()] == ["90", "99.5", "99.9"]
    assert right.get_xlim()[1] > 99.9
    (only,) = panels(curve, [0.2, 0.5, 0.6, 0.95])
    assert only.get_xlim()[0] < 20


def test_no_accuracy_is_called_that_of_the_dense_network_unless_it_is(panels):
    left, _ = panels({"a": [90.0, 80.0]}, [0.9, 0.99])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a"]


def test_a_curve_without_differences_is_drawn(panels):
    for axes in panels({"a": [10.0] * len(RATIOS)}):
        low, high = axes.get_ylim()
        assert low < 10 < high
