"""Sharded parameters, in groups of processes: checks.py has what is checked."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

CHECKS = Path(__file__).with_name("checks.py")
NAMES = [
    node.name.removeprefix("check_")
    for node in ast.parse(CHECKS.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the checks' processes have left: their files, and what they printed."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run(
        [sys.executable, str(CHECKS), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    return folder, done.stderr


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_sharded_parameters(ran, name, processes):
    folder, printed = ran
    for rank in range(processes):
        path = folder / f"{processes}_{rank}.json"
        assert path.exists(), printed
        assert json.loads(path.read_text())[name] == "", printed
