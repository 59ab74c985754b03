"""Signals that stop a run: at once, or when it asks for them."""

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
    assert stopped.value.number == number


def test_a_deferred_signal_is_noted_and_a_second_one_is_raised():
    with StopSignals() as signals:
        signals.deferring = True
        assert signals.received() == 0
        send()
        assert signals.received() == signal.SIGTERM
        with pytest.raises(Stopped):
            send()


def test_a_second_signal_is_deferred_in_several_processes():
    """torchrun passes on what the terminal has sent to all."""
    with StopSignals(agree=lambda number: number) as signals:
        signals.deferring = True
        send()
        send()
        assert signals.received() == signal.SIGTERM


def test_a_signal_to_another_process_is_received_in_this_one():
    signals = StopSignals(agree=lambda number: max(number, signal.SIGTERM))
    assert signals.received() == signal.SIGTERM


@pytest.mark.parametrize("former", [signal.SIG_IGN, lambda number, frame: None])
def test_handlers_are_restored_and_ignored_signals_stay_ignored(former):
    signal.signal(signal.SIGTERM, former)
    with StopSignals() as signals:
        if former == signal.SIG_IGN:
            send()
            assert not signals.received()
    assert signal.getsignal(signal.SIGTERM) == former
