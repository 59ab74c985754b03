"""What the README shows runs."""

import re

import torch
from runs import ROOT

from utils.prune.config import PruneConfig
from utils.settings.cli import Parser
from utils.settings.config import Config

README = (ROOT / "README.md").read_text()


def test_the_example_of_an_own_training_loop_runs_and_learns():
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "SFW(" in c)
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    with torch.no_grad():
        x = torch.randn(4096, 20)
        y = x[:, 0] * x[:, 1]
        error = (names["model"](x).squeeze(1) - y).square().mean()
    assert error < 0.9 * y.square().mean()
    assert all(p.isfinite().all() for p in names["model"].parameters())


def test_the_flags_in_the_readme_exist():
    parser = Parser("", Config, PruneConfig)
    parser.add_model_path()
    known = {"--archs", "--methods", "--seeds", "--compare"}  # of the comparisons
    known |= {flag for action in parser._actions for flag in action.option_strings}
    assert set(re.findall(r"--[a-z_]+", README)) <= known
