"""What the README shows runs."""

import re

from conftest import ROOT


def test_the_example_of_an_own_training_loop_runs_and_learns():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["loss"].item() < 10
    assert all(p.isfinite().all() for p in names["model"].parameters())


def test_the_flags_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    known = {f"--{action.dest}" for action in _actions()} | {"--model_path", "--help"}
    assert set(re.findall(r"--[a-z_]+", text)) <= known


def _actions():
    from utils.cli import Parser

    return Parser("")._actions
