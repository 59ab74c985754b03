"""What the scripts import as they start, and what the optimizers do not."""

import subprocess
import sys

from runs import ROOT, SCRIPTS

LOOP = """
import sys, torch
from constraints import KSparsePolytope
from optim import SFW, ProjectedSGD
p = torch.nn.Parameter(torch.zeros(10))
for kind in (SFW, ProjectedSGD):
    optimizer = kind([p], [KSparsePolytope(10, 2, radius=1.0)])
    p.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_scripts_start_without_what_only_some_runs_need():
    modules = ", ".join(name.removesuffix(".py") for name in SCRIPTS)
    optional = {"matplotlib", "sklearn", "scipy", "numba", "torchvision", "PIL", "tensorboard"}
    optional |= {"triton", "torch._dynamo"}
    assert output(f"import sys, {modules}; print(sys.modules.keys() & {optional})") == "set()\n"


def test_a_loop_does_not_import_the_compiler():
    """It takes seconds; PyTorch's own optimizers import it when they are made."""
    assert output(LOOP) == "False\n"


def output(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
