"""When a training step is captured, and when it is replayed: with graphs that only note it.

Whether a real graph computes what the step does is for a GPU to show, in test_cuda.py.
"""

from contextlib import contextmanager

import pytest
import torch

from utils.train.cuda_graph import WARM_UP, CapturedStep

FULL = 4


@pytest.fixture
def events(monkeypatch):
    """What happens, in order, with all that needs a GPU replaced."""
    noted = []

    class Graph:
        def replay(self):
            noted.append("replay")

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            noted.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream):
        noted.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: on(stream))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    return noted


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.fixture
def step(events, optimizer):
    def plain(inputs, targets):
        events.append(len(inputs))
        return inputs.sum(), targets

    return CapturedStep(plain, optimizer, FULL)


def take(step, count, size=FULL):
    for i in range(count):
        inputs, targets = torch.full((size,), float(i)), torch.full((size,), i)
        outputs = step(inputs, targets)
    return inputs, targets, outputs


def test_the_first_steps_are_taken_beside_and_the_next_is_captured_once(step, events):
    take(step, WARM_UP + 3)
    first = ["side waits for main", "on side", FULL, "main waits for side"]
    assert events == first * WARM_UP + ["on side", FULL, "replay", "replay", "replay"]


def test_a_replay_has_its_own_batch(step):
    inputs, targets, _ = take(step, WARM_UP + 3)
    assert torch.equal(step.inputs, inputs) and torch.equal(step.targets, targets)
    assert step.inputs is not inputs


def test_a_batch_of_another_size_is_taken_as_it_is(step, events):
    take(step, WARM_UP + 1)
    events.clear()
    _, targets, outputs = take(step, 1, FULL - 1)
    assert events == [FULL - 1] and outputs[1] is targets


def test_another_learning_rate_is_captured_anew(step, events, optimizer):
    take(step, WARM_UP + 1)
    events.clear()
    optimizer.param_groups[0]["lr"] = 0.01
    take(step, 2)
    assert events == ["on side", FULL, "replay", "replay"]
