"""Signals that stop a run: at once, or between two steps."""

import os
import signal

import pytest

from utils.process.signals import SIGNALS, Stopped, StopSignals


@pytest.fixture(autouse=True)
def default_handlers():
    """A job in the background, for instance, ignores SIGINT."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_at_once(number):
    with StopSignals(), pytest.raises(Stopped) as stopped:
        send(number)
    assert stopped.value.number == number and not stopped.value.between_steps


def test_a_deferred_signal_is_raised_at_the_next_check():
    with StopSignals() as signals, pytest.raises(Stopped) as stopped, signals.deferred():
        send()
        signals.check()
    assert stopped.value.between_steps


def test_a_deferred_signal_is_raised_at_the_end_of_the_block():
    reached_end = False
    with StopSignals() as signals, pytest.raises(Stopped), signals.deferred():
        send()
        reached_end = True
    assert reached_end


def test_a_second_signal_is_not_deferred():
    reached_end = False
    with StopSignals() as signals, pytest.raises(Stopped) as stopped, signals.deferred():
        send()
        send()
        reached_end = True
    assert not reached_end and not stopped.value.between_steps


def test_a_second_signal_is_deferred_in_several_processes():
    """torchrun passes on what the terminal has sent to all."""
    with (
        StopSignals(agree=lambda number: number) as signals,
        pytest.raises(Stopped) as stopped,
        signals.deferred(),
    ):
        send()
        send()
        signals.check()
    assert stopped.value.between_steps


def test_a_signal_to_another_process_stops_this_one():
    signals = StopSignals(agree=lambda number: max(number, signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM"):
        signals.check()


@pytest.mark.parametrize("former", [signal.SIG_IGN, lambda number, frame: None])
def test_handlers_are_restored_and_ignored_signals_stay_ignored(former):
    signal.signal(signal.SIGTERM, former)
    with StopSignals() as signals:
        if former == signal.SIG_IGN:
            send()
            signals.check()
    assert signal.getsignal(signal.SIGTERM) == former
