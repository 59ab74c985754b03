"""What the scripts import as they start."""

import subprocess
import sys

from runs import ROOT, SCRIPTS


def test_scripts_start_without_what_only_some_runs_need():
    modules = ", ".join(name.removesuffix(".py") for name in SCRIPTS)
    optional = {"matplotlib", "sklearn", "scipy", "numba", "torchvision", "PIL", "tensorboard"}
    code = (
        f"import sys, {modules}; print({{m.partition('.')[0] for m in sys.modules}} & {optional})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "set()\n", done.stderr
