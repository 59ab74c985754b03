"""A script as a process: what it imports, and standard streams that are closed."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import ROOT, SCRIPTS

from models import build_model


def python(*arguments, redirect=""):
    """The finished process; `redirect` is what the shell does with its standard streams."""
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_start_without_what_only_some_runs_need(name):
    module = name.removesuffix(".py")
    optional = {"matplotlib", "sklearn", "scipy", "numba", "torchvision", "PIL", "tensorboard"}
    code = f"import sys, {module}; print({{m.partition('.')[0] for m in sys.modules}} & {optional})"
    assert python("-c", code).stdout == "set()\n"


def test_no_file_takes_the_number_of_a_stream_that_was_closed(tmp_path):
    code = """
import os, sys
from utils.process.errors import exit_status
def main():
    with open(sys.argv[1], "w") as file:
        print("message", file=sys.stderr, flush=True)
        os.write(2, b"message of a library")
raise SystemExit(exit_status(main))
"""
    path = tmp_path / "file"
    assert python("-c", code, path, redirect="<&- >&- 2>&-").returncode == 0
    assert path.read_text() == ""


def test_names_that_standard_output_cannot_show_are_escaped(tmp_path, write_npz):
    labels = np.arange(4)
    data = write_npz(tmp_path, "digits", train=4, test=4, y_train=labels, y_test=labels)
    data.rename(tmp_path / "ψηφία.npz")
    torch.save(build_model("Mlp", 4, 1, 8).state_dict(), tmp_path / "ψηφία.pt")
    flags = ("--data", "ψηφία", "--arch", "Mlp", "--model_path", "ψηφία.pt", "--data_dir", ".")
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, ROOT / "test_weight_distribution.py", *flags]
    done = subprocess.run(command, cwd=tmp_path, env=latin, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert rb"picture: \u03c8\u03b7" in done.stdout
