"""Processes of an experiment: they end with the command, and with the first failure."""

import os
import signal
import subprocess
import sys
import time
from subprocess import PIPE

import pytest

# Two tasks run, two wait; each tells when it begins, and would sleep for longer than the test.
SCRIPT = """
import sys, time
from pathlib import Path
from experiments.workers import workers
from utils.process.errors import exit_status

def task(file, fails):
    file.touch()
    if fails:
        raise ValueError("a task failed")
    time.sleep(100)

def main():
    files = [Path(name) for name in sys.argv[2:]]
    with workers(2, 1) as run_all:
        print("begun", flush=True)
        run_all(task, [(file, file.name == sys.argv[1]) for file in files])

if __name__ == "__main__":
    sys.exit(exit_status(main))
"""


def started(tmp_path, fails=""):
    """The command, in a process group of its own, and the files that its tasks make."""
    script, files = tmp_path / "script.py", [tmp_path / name for name in "abcd"]
    script.write_text(SCRIPT)
    command = [sys.executable, script, fails, *files]
    environment = {"PYTHONPATH": ".", "PATH": ""}
    process = subprocess.Popen(
        command, env=environment, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    )
    return process, files


def assert_group_is_empty(process):
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


@pytest.mark.parametrize(("number", "at_work"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_ends_all_processes_at_once(tmp_path, number, at_work):
    process, files = started(tmp_path)
    assert process.stdout.readline() == "begun\n"  # the processes are about to start
    while at_work and not all(file.exists() for file in files[:2]):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number) if at_work else process.send_signal(number)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 128 + number
    assert errors.splitlines() == [
        f"error: stopped by {number.name}; the same command starts again"
    ]
    assert not any(file.exists() for file in files[2:])
    assert_group_is_empty(process)


def test_a_failed_task_ends_the_others(tmp_path):
    process, _ = started(tmp_path, fails="b")
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "ValueError: a task failed" in errors
    assert_group_is_empty(process)
