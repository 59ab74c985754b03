"""Locks of runs, between processes of one machine and of several that share a folder.

Another machine is simulated by another host name, and by file locks that do not hold.
"""

import os
import threading
import time

import pytest

from utils.train import lock
from utils.train.lock import LockedError, run_lock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


@pytest.fixture
def no_file_locks(monkeypatch):
    """As on a shared folder whose locks each machine keeps for itself."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda descriptor, operation: None)


@pytest.fixture
def move_to(monkeypatch):
    """move_to(name) makes this machine have that name."""
    return lambda name: monkeypatch.setattr(lock.socket, "gethostname", lambda: name)


def assert_locked(path, owner):
    before = path.read_bytes()
    with pytest.raises(LockedError, match=f": process {owner} is training"), run_lock(path):
        pass
    assert path.read_bytes() == before


def test_a_second_process_is_refused_until_the_first_is_done(path):
    with run_lock(path):
        assert_locked(path, os.getpid())
    assert not path.exists()
    with run_lock(path):
        pass


def test_a_process_of_another_machine_is_refused_and_told_which(path, move_to, no_file_locks):
    move_to("first")
    with run_lock(path):
        move_to("second")
        assert_locked(path, f"{os.getpid()} on first")
        move_to("first")
    assert not path.exists()


def test_a_file_system_without_locks_keeps_processes_apart(path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError("not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with run_lock(path):
        assert_locked(path, os.getpid())


def test_an_owner_that_died_on_this_machine_is_followed_at_once(path):
    path.write_text(f"1 on {lock.socket.gethostname()}")
    with run_lock(path):
        assert path.read_text().startswith(f"{os.getpid()} on ")


def test_an_owner_on_another_machine_is_dead_once_it_is_silent(path, move_to, monkeypatch):
    monkeypatch.setattr(lock, "SETTLING", 0)
    path.write_text("1 on other")
    assert_locked(path, "1 on other")
    long_ago = time.time() - lock.SILENCE - 1
    os.utime(path, (long_ago, long_ago))
    with run_lock(path):
        assert path.read_text().startswith(f"{os.getpid()} on ")
    assert not path.exists()


def test_of_two_machines_that_follow_a_dead_owner_one_is_refused(path, monkeypatch):
    path.write_text("1 on dead")
    os.utime(path, (0, 0))
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: path.write_text("2 on third"))
    with pytest.raises(LockedError, match="process 2 on third is training"), run_lock(path):
        pass
    assert path.read_text() == "2 on third"


@pytest.mark.parametrize("written", ["", "1 on other"])
def test_a_file_without_a_name_is_given_the_time_to_be_written(path, written, monkeypatch):
    path.touch()
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 1:
            path.write_text(written)

    monkeypatch.setattr(lock.time, "sleep", nap)
    if written:
        with pytest.raises(LockedError), run_lock(path):
            pass
    else:
        with run_lock(path):
            assert path.read_text().startswith(f"{os.getpid()} on ")


def test_an_owner_gives_signs_of_life_as_long_as_it_holds_the_lock(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    threads = threading.active_count()
    with run_lock(path):
        os.utime(path, (0, 0))
        ends = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < ends:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
    assert threading.active_count() == threads


def test_a_lock_that_another_machine_has_taken_over_is_not_removed(path):
    with run_lock(path):
        path.write_text("1 on other")
    assert path.read_text() == "1 on other"
