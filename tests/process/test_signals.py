"""Signals that stop a run: at once, or between two steps."""

import os
import signal
import subprocess
import sys

import pytest

from utils.process.signals import SIGNALS, Stopped, StopSignals


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
    before = signal.signal(signal.SIGTERM, former)
    with StopSignals() as signals:
        if former == signal.SIG_IGN:
            send()
            signals.check()
    assert signal.signal(signal.SIGTERM, before) == former


def test_the_tests_themselves_pass_in_the_background():
    """A shell starts a job in the background with SIGINT ignored."""
    test = f"{__file__}::test_a_signal_is_raised_at_once"
    line = f"exec {sys.executable} -m pytest -q '{test}' & wait $!"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
