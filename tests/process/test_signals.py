"""Signals that stop a run: at once, or when it asks for them."""

import os
import signal

import pytest

from utils.process.signals import SIGNALS, Stopped, StopSignals


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
        assert signals.pending == 0
        send()
        assert signals.pending == signal.SIGTERM
        with pytest.raises(Stopped):
            send()


def test_a_second_signal_is_deferred_in_several_processes():
    """torchrun passes on what the terminal has sent to all."""
    with StopSignals(all_wait=True) as signals:
        signals.deferring = True
        send()
        send()
        assert signals.pending == signal.SIGTERM


@pytest.mark.parametrize("former", [signal.SIG_IGN, lambda number, frame: None])
def test_handlers_are_restored_and_ignored_signals_stay_ignored(former):
    before = signal.signal(signal.SIGTERM, former)
    with StopSignals() as signals:
        if former == signal.SIG_IGN:
            send()
            assert not signals.pending
    assert signal.signal(signal.SIGTERM, before) == former
