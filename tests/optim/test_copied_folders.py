"""The folders optim/ and constraints/ as users copy them: beside modules named as ours are."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from runs import ROOT

FUSED = """
try:
    SFW(model.parameters(), constraints, fused=True)
    print("fused")
except RuntimeError as error:
    print(error)
print(f"{loss.item():.3f}")
"""


@pytest.fixture
def project(tmp_path):
    """A user's project with both folders, and with files named as ours are, which fail."""
    for name in ("optim", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("utils.py", "models/__init__.py", "data/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise AssertionError('the copied folders import what is not theirs')\n")
    return tmp_path


@pytest.mark.parametrize("numba", [True, False])
def test_the_readmes_loop_runs_there(project, numba):
    readme = (ROOT / "README.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "SFW(" in c)
    code = code.replace("import torch\n", "import torch\ntorch.manual_seed(0)\n", 1)
    (project / "loop.py").write_text(code + FUSED)
    if not numba:
        (project / "numba.py").write_text("raise ModuleNotFoundError('no module named numba')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fused, loss = done.stdout.splitlines()
    assert fused == "fused" if numba else "it needs Numba" in fused
    assert 0 < float(loss) < 2
