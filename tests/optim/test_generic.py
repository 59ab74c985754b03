"""PyTorch's generic tests of optimizers, where PyTorch brings what they need."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import ROOT


@pytest.mark.skipif(
    not (find_spec("torch.testing._internal.common_optimizers") and find_spec("expecttest")),
    reason="needs torch.testing._internal and expecttest",
)
def test_pytorchs_generic_tests_pass():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("generic.py"))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    ran = re.search(r"Ran (\d+) tests", done.stderr)
    assert done.returncode == 0, done.stderr
    assert ran and int(ran[1]) == 30 and "skipped" not in done.stderr
