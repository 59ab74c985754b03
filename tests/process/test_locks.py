"""Locks of runs, between processes of one machine."""

import os
import signal

import pytest

from utils.process.errors import UserError
from utils.process.locks import LockedError, run_lock


def assert_locked(path):
    with pytest.raises(LockedError, match="another process is training"), run_lock(path):
        pass
    assert path.exists()


def test_a_second_owner_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "new" / "run.lock"
    with run_lock(path):
        assert_locked(path)
    assert not path.exists()
    with run_lock(path):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "run.lock"
    ready, told = os.pipe()
    process = os.fork()
    if process == 0:
        with run_lock(path):
            os.write(told, b"held")
            signal.pause()
    assert os.read(ready, 4) == b"held"
    assert_locked(path)
    os.kill(process, signal.SIGKILL)  # which cleans up nothing
    os.waitpid(process, 0)
    assert path.exists()
    with run_lock(path):
        pass


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="--output_dir: cannot write"),
        run_lock(tmp_path / "file" / "run.lock"),
    ):
        pass
