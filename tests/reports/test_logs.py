"""The text log of a run: appended to, cut where a run goes on, whole after a full disk."""

import os

import pytest

from utils.process.errors import RunError
from utils.reports.logs import TextLog


@pytest.fixture
def log(tmp_path):
    log = TextLog(tmp_path / "logs" / "run.log")
    for line in ("one", "two \u00e9"):
        log.add(line)
    log.save()
    return log


def text_of(log):
    return log.path.read_text(encoding="utf-8")


def test_saving_again_appends_to_the_same_file(log):
    inode = log.path.stat().st_ino
    log.add("three")
    log.save()
    assert text_of(log) == "one\ntwo \u00e9\nthree\n"
    assert log.path.stat().st_ino == inode


def test_half_a_line_that_a_full_disk_left_is_replaced(log, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    log.add("three")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            log.save()
    log.add("four")
    log.save()
    assert text_of(log) == "one\ntwo \u00e9\nthree\nfour\n"


def test_a_log_goes_on_from_its_length_and_drops_later_lines(log):
    length = log.length
    log.add("of an epoch that was cut off")
    log.save()
    other = TextLog(log.path)
    other.add("configuration of the new process")
    other.resume(length)
    other.add("three")
    other.save()
    assert text_of(log) == "one\ntwo \u00e9\nthree\n"


@pytest.mark.parametrize(("left", "text"), [(None, "three\n"), ("one\n", "one\nthree\n")])
def test_a_file_that_lost_lines_is_told_and_goes_on(left, text, log, capsys):
    log.path.unlink() if left is None else log.path.write_text(left)
    log.add("three")
    log.save()
    assert capsys.readouterr().err == (
        f"warning: {log.path}: is gone or changed; earlier lines are missing\n"
    )
    assert text_of(log) == text
