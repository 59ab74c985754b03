"""Progress bars: drawn on terminals alone, and dropped when the terminal has gone."""

import errno
import io
import sys

import pytest

from utils.process.terminal import ProgressBar


class Terminal(io.StringIO):
    gone = False

    def isatty(self):
        return True

    def write(self, text):
        if self.gone:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return super().write(text)


def test_a_bar_shows_how_much_is_done_and_a_text(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = ProgressBar("Epoch 1/2", 8, initial=2, mininterval=0)
    bar.advance_to(3)
    bar.advance_to(6, "loss 0.5")
    shown = terminal.getvalue().split("\r")[-1]
    assert "Epoch 1/2" in shown and "6/8" in shown and "loss 0.5" in shown
    bar.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tqdm's end
def test_a_bar_whose_terminal_has_gone_is_dropped(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = ProgressBar("Epoch 1/2", 8, mininterval=0)
    terminal.gone = True
    for done in range(1, 9):
        bar.advance_to(done)
    assert terminal.getvalue().count("Epoch 1/2") == 1
    bar.close()


def test_a_file_gets_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = ProgressBar("Epoch 1/2", 8, mininterval=0)
    bar.advance_to(8, "loss 0.5")
    bar.close()
    assert sys.stderr.getvalue() == ""
