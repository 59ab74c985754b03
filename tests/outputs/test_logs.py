"""The text log of a run: appended to, restored by its checksum, whole after damage."""

import os

import pytest

from utils.outputs.logs import TextLog
from utils.process.errors import RunError


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


@pytest.mark.parametrize("spoil", ["removed", "cut", "longer"])
def test_a_file_that_something_else_changed_is_written_anew(spoil, log):
    if spoil == "removed":
        log.path.unlink()
    else:
        log.path.write_text("one\nt" if spoil == "cut" else text_of(log) + "more\n")
    log.add("three")
    log.save()
    assert text_of(log) == "one\ntwo \u00e9\nthree\n"


def test_half_a_line_that_a_full_disk_left_is_replaced(log, monkeypatch):
    sync = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.process.writing.os.fsync", full)
    log.add("three")
    with pytest.raises(RunError, match="No space left on device"):
        log.save()
    monkeypatch.setattr("utils.process.writing.os.fsync", sync)
    log.add("four")
    log.save()
    assert text_of(log) == "one\ntwo \u00e9\nthree\nfour\n"


def test_a_log_goes_on_from_its_mark_and_drops_later_lines(log):
    mark = log.mark()
    log.add("of an epoch that was cut off")
    log.save()
    other = TextLog(log.path)
    other.add("configuration of the new process")
    assert other.restore(**mark)
    assert other.mark() == mark
    other.add("three")
    other.save()
    assert text_of(log) == "one\ntwo \u00e9\nthree\n"


def test_a_log_with_other_lines_is_not_restored(log):
    mark = log.mark()
    log.path.write_text("one\nTWO\n")
    other = TextLog(log.path)
    other.add("configuration")
    assert not other.restore(**mark)
    other.save()
    assert text_of(log) == "configuration\n"
