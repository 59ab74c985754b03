"""Sharded parameters, in groups of processes; the checks stand in checks.py."""

import ast
import fcntl
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
# Only four make a mesh both of whose dimensions are larger than 1.
GROUPS = {2: NAMES, 4: ["steps", "a_transformer_under_fully_shard"]}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the checks' processes have left: their files, and what they printed.

    They run once, for all workers of pytest-xdist.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    printed = folder / "sharded.txt"
    with (folder / "sharded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = subprocess.run(
                [sys.executable, str(CHECKS), str(folder), json.dumps(GROUPS)],
                env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=400,
            )
            printed.write_text(done.stderr)
    return folder, printed.read_text()


@pytest.mark.parametrize(
    ("processes", "name"), [(size, name) for size, names in GROUPS.items() for name in names]
)
def test_sharded_parameters(ran, processes, name):
    folder, printed = ran
    for rank in range(processes):
        path = folder / f"{processes}_{rank}.json"
        assert path.exists(), printed
        assert json.loads(path.read_text())[name] == "", printed
