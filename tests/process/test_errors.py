"""Expected errors end a script with one line and an exit status."""

import io
import os
import sys

import pytest
import torch

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
    """A stream to a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_an_error_that_nobody_reads_keeps_its_status(broken_pipe, monkeypatch):
    def fail():
        raise UserError("--flag: what is wrong; what to do")

    monkeypatch.setattr(sys, "stderr", broken_pipe)
    assert exit_status(fail) == 2


def test_a_result_that_nobody_reads_is_told(broken_pipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", broken_pipe)
    assert exit_status(lambda: print("result")) == 1
    assert capsys.readouterr().err == "error: cannot write the output (Broken pipe)\n"


def test_what_standard_output_cannot_show_is_escaped(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "latin-1"))
    assert exit_status(lambda: print("picture: ψη")) == 0
    assert output.getvalue() == rb"picture: \u03c8\u03b7" + b"\n"
