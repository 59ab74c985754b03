"""Training steps: batches, learning rates and results on the device; when a step is captured.

Whether a real graph computes what a step does is for a GPU to show, in test_captured_steps.py.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from utils.datasets.augment import crop_and_flip
from utils.datasets.batches import Batches
from utils.settings.config import Config
from utils.train.step import SPARSITIES, WARM_UP, TrainingStep, step_sparsities

COUNT, SIZE = 22, 4  # five whole batches and one of two images


def make_batches():
    images = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    generator = torch.Generator().manual_seed(0)
    return Batches(images, torch.arange(COUNT), SIZE, (0.0,), (1.0,), crop_and_flip, generator)


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.fixture
def taken(optimizer):
    """What each step was given, and what it gave."""
    return []


@pytest.fixture
def step(optimizer, taken):
    """Steps whose loss is that of the mean pixel, and which get every third image right."""

    def train_on(inputs, targets, context):
        lr = optimizer.param_groups[0]["lr"]
        logits = torch.nn.functional.one_hot(targets, COUNT).float()
        logits[targets % 3 > 0] *= -1
        taken.append(SimpleNamespace(inputs=inputs, targets=targets, lr=float(lr), context=context))
        return inputs.mean(), logits

    return TrainingStep(train_on, make_batches(), optimizer, pruned=lambda s: s)


def epoch(step, rates=None, done=0):
    step.begin_epoch(step.batches.order(), rates or [0.1] * 6, done)
    for _ in range(done, 6):
        step()


def test_steps_see_the_batches_of_a_round_in_its_order(step, taken):
    epoch(step)
    expected = list(make_batches())
    assert len(taken) == len(expected) == 6
    for seen, (inputs, targets) in zip(taken, expected, strict=True):
        assert torch.equal(seen.inputs, inputs) and torch.equal(seen.targets, targets)


def test_results_hold_each_steps_loss_and_number_of_right_images(step, taken):
    epoch(step)
    for seen, (loss, correct, _) in zip(taken, step.results.tolist(), strict=True):
        assert loss == pytest.approx(seen.inputs.mean().item())
        assert correct == (seen.targets % 3 == 0).sum()


def test_every_step_has_its_own_learning_rate(step, taken):
    rates = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    epoch(step, rates)
    assert [seen.lr for seen in taken] == rates


def test_an_epoch_goes_on_where_it_was_stopped(step, taken):
    step.begin_epoch(torch.arange(COUNT), [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], done=4)
    step()
    step()
    assert [seen.targets.tolist() for seen in taken] == [[16, 17, 18, 19], [20, 21]]
    assert [seen.lr for seen in taken] == [0.2, 0.1]
    assert step.results[:4].eq(0).all() and step.results[4:, 0].ne(0).all()


@pytest.fixture
def events(monkeypatch, step):
    """What happens, in order, when steps are captured; all that needs a GPU is replaced.

    A replay takes the step as it was captured, which a graph does on a device.
    """
    noted, one_step = [], step._step

    def noted_step(size, sparsity=0.0):
        noted.append(f"pruned to {sparsity}" if sparsity else size)
        one_step(size, sparsity)

    class Graph:
        def replay(self):
            noted.append("replay")
            one_step(SIZE)

        def register_generator_state(self, generator):
            noted.append("generator registered")

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            noted.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream):
        noted.append(f"on {stream.name}")
        yield

    @contextmanager
    def capture(graph, stream):
        noted.append(f"captured on {stream.name}")
        monkeypatch.setattr(step, "_step", lambda size: noted.append(size))  # recorded, not taken
        yield
        monkeypatch.setattr(step, "_step", noted_step)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    step._step, step.captures, step.stream = noted_step, True, Stream("side")
    return noted


@pytest.mark.parametrize("captures", [False, True])
def test_pruned_steps_have_a_context_and_are_not_captured(captures, step, taken, request):
    events = request.getfixturevalue("events") if captures else []
    step.steps_before_capture = 0
    step.begin_epoch(step.batches.order(), [0.1] * 6, 0, sparsities=[0.0, 0.9, 0.0, 0.8, 0.0, 0.95])
    for _ in step.sizes:
        step()
    assert [one.context for one in taken] == [0.0, 0.9, 0.0, 0.8, 0.0, 0.95]
    replayed = ["replay", "pruned to 0.9", "replay", "pruned to 0.8", "replay", "pruned to 0.95"]
    assert events == ([*CAPTURE, *replayed] if captures else [])


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1 / 3, 0.7, 1.0])
def test_every_second_step_of_the_last_fraction_is_pruned_to_a_drawn_sparsity(fraction):
    epochs, steps = 6, 55  # 0.7 of them begin at step 99, whatever the rounding
    config, other = (Config(pruned_steps=fraction, seed=s, epoch_num=epochs) for s in (3, 4))
    rows = [step_sparsities(config, epoch, steps) for epoch in range(epochs)]
    drawn = [sparsity for row in rows for sparsity in row]
    pruned = [i for i, sparsity in enumerate(drawn) if sparsity]
    start = 330 - round(fraction * 330)
    assert pruned == [i for i in range(330) if i % 2 and i >= start]
    if fraction:
        assert set(drawn) == {0.0, *SPARSITIES}
        assert rows[5] == step_sparsities(config, 5, steps)
        assert rows[5] != step_sparsities(other, 5, steps)
    if fraction == 1:
        assert rows[5] != rows[4]


FIRST = ["side waits for main", "on side", SIZE, "main waits for side"]
CAPTURE = ["generator registered", "captured on side", SIZE]


def test_the_first_steps_are_taken_beside_and_the_next_is_captured_once(step, events):
    epoch(step)
    epoch(step)
    last = COUNT % SIZE
    assert events == [*FIRST * WARM_UP, *CAPTURE, "replay", "replay", last, *["replay"] * 5, last]


def test_captured_steps_see_the_same_batches_rates_and_results(step, events, taken):
    rates = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    epoch(step, rates)
    assert [seen.lr for seen in taken] == pytest.approx(rates)
    for seen, (inputs, targets) in zip(taken, make_batches(), strict=True):
        assert torch.equal(seen.inputs, inputs) and torch.equal(seen.targets, targets)
    assert step.results[:, 0].tolist() == pytest.approx([t.inputs.mean().item() for t in taken])


def test_another_learning_rate_needs_no_other_capture(step, events):
    epoch(step, [0.1] * 6)
    events.clear()
    epoch(step, [0.01] * 6)
    assert "captured on side" not in events


def test_a_step_that_cannot_be_captured_says_why_once_and_goes_without(
    step, events, taken, monkeypatch, capsys
):
    @contextmanager
    def refused(graph, stream):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("the capture was invalidated")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refused)
    epoch(step)
    epoch(step)
    assert capsys.readouterr().err == (
        "warning: steps are not captured in a CUDA graph, and are slower: operation not"
        " permitted when stream is capturing\n"
    )
    assert len(taken) == 12
