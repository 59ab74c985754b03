"""Expected errors end a script with one line and an exit status."""

import os
import subprocess
import sys

import pytest
import torch
from runs import DIGITS, ROOT

from utils.process.errors import RunError, UserError, exit_status


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (RunError, 1)])
def test_an_expected_error_is_one_line_with_its_status(kind, status, capsys):
    def fail():
        raise kind("--flag: what is wrong;\n  what to do")

    assert exit_status(fail) == status
    assert capsys.readouterr() == ("", "error: --flag: what is wrong; what to do\n")


def test_a_failure_in_mid_run_is_no_user_error():
    assert not issubclass(RunError, UserError)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_reported_in_one_line(error, capsys):
    def fail():
        raise error

    assert exit_status(fail) == 1
    message = "error: out of memory; choose a smaller batch size or network\n"
    assert capsys.readouterr() == ("", message)


def test_an_unexpected_error_keeps_its_traceback():
    def fail():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        exit_status(fail)


@pytest.fixture
def broken_pipe():
    """The end for writing of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_an_error_that_nobody_reads_keeps_its_status(broken_pipe):
    command = [sys.executable, ROOT / "train_prune.py", "--lr", "7"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=broken_pipe, timeout=120)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_result_that_nobody_reads_is_told(script, trained, broken_pipe):
    flags = (*DIGITS, "--output_dir", trained)
    done = script("test_weight_distribution.py", *flags, stdout=broken_pipe)
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output (Broken pipe)\n")
