"""When a step is captured in a CUDA graph; all that needs a GPU is replaced.

Whether a real graph computes what a step does is for a GPU to show, in test_captured_on_gpu.py.
"""

from contextlib import contextmanager

import pytest
import torch

from utils.train.captured_step import WARM_UP, CapturedStep

SIZE = 4


@pytest.fixture
def events():
    """What happens, in order."""
    return []


def results_of(inputs, targets, lr):
    return torch.stack([inputs.sum(), targets.sum(), lr])


@pytest.fixture
def step(monkeypatch, events):
    """A captured step that returns the sums of what it is given.

    A replay takes the step with the captured tensors, as a graph does on a device.
    """

    class Graph:
        def replay(self):
            events.append("replay")
            captured.results.copy_(results_of(captured.inputs, captured.targets, captured.lr))

    class Stream:
        def __init__(self, name):
            self.name = "side" if isinstance(name, torch.device) else name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream):
        events.append(f"on {stream.name}")
        yield

    @contextmanager
    def capture(graph, stream):
        events.append(f"captured on {stream.name}")
        yield

    def take(inputs, targets, lr, sparsity=0.0, weight=1.0):
        events.append(f"pruned to {sparsity}" if sparsity else len(inputs))
        return results_of(inputs, targets, lr)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    captured = CapturedStep(take, optimizer, SIZE, torch.device("cpu"))
    return captured


def call(step, number, size=SIZE, **more):
    """Takes a step on numbers of its own, and returns its results once later ones are taken."""
    inputs, targets = torch.full((size,), float(number)), torch.full((size,), 10.0 * number)
    results = step(inputs, targets, 0.5 * number, **more)
    expected = [inputs.sum().item(), targets.sum().item(), 0.5 * number]
    return lambda: results.tolist() == expected


FIRST = ["side waits for main", "on side", SIZE, "main waits for side"]


def test_the_first_steps_are_taken_beside_and_the_next_is_captured_once(step, events):
    for number in range(WARM_UP + 3):
        call(step, number)
    assert events == [*FIRST * WARM_UP, "captured on side", SIZE, *["replay"] * 3]


def test_each_step_has_the_results_of_its_own_batch_and_rate(step):
    right = [call(step, number) for number in range(1, WARM_UP + 5)]
    assert all(is_right() for is_right in right)


def test_pruned_steps_and_smaller_batches_are_not_captured(step, events):
    for number in range(WARM_UP + 1):
        call(step, number)
    events.clear()
    right = [call(step, 7, size=2), call(step, 8, sparsity=0.9), call(step, 9)]
    assert events == [2, "pruned to 0.9", "replay"]
    assert all(is_right() for is_right in right)


def test_a_step_that_cannot_be_captured_says_why_once_and_goes_without(
    step, events, monkeypatch, capsys
):
    @contextmanager
    def refused(graph, stream):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("the capture was invalidated")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refused)
    right = [call(step, number) for number in range(WARM_UP + 3)]
    assert all(is_right() for is_right in right)
    assert events[-3:] == [SIZE] * 3
    assert capsys.readouterr().err == (
        "warning: steps are not captured in a CUDA graph, and are slower: RuntimeError: operation"
        " not permitted when stream is capturing\n"
    )
