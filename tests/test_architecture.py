"""Imports point one way: scripts to utils to models, optim and constraints, and down its rooms."""

import ast
import graphlib

import pytest
from runs import ROOT

# What each package may import of the others. A room of utils may also import its own modules.
METHOD = {"models", "optim", "constraints"}
BELOW = {
    "constraints": set(),
    "models": set(),
    "optim": {"constraints"},
    "utils.process": set(),
    "utils.compute": {"utils.process"},
    "utils.datasets": {"utils.process"},
    "utils.settings": METHOD | {"utils.process", "utils.compute", "utils.datasets"},
}
# The floors of utils above settings: each may import what is below it.
for room, below in (
    ("utils.checkpoints", "utils.settings"),
    ("utils.prune", "utils.checkpoints"),
    ("utils.reports", "utils.prune"),
    ("utils.train", "utils.reports"),
):
    BELOW[room] = BELOW[below] | {below}


def modules():
    """Every module of the packages, with the names that its code imports."""
    paths = [path for package in (*METHOD, "utils") for path in (ROOT / package).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    known = set(names.values())
    return {name: imported(path.read_text(), known) for path, name in names.items()}


def imported(source, known):
    """The modules of the project that this source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {
                name if (name := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    scripts = {path.stem for path in ROOT.glob("*.py")} | {"benchmarks", "experiments", "tests"}
    return {name for name in found if name in known or name.partition(".")[0] in scripts}


def package_of(module):
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "utils" else 1])


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"utils"}))
def test_a_module_imports_only_its_own_package_and_those_below(module):
    package = package_of(module)
    assert {package_of(name) for name in MODULES[module]} <= BELOW[package] | {package}


def test_no_module_is_imported_in_a_circle():
    tuple(graphlib.TopologicalSorter(MODULES).static_order())  # raises CycleError


def test_utils_itself_is_empty():
    """Every module of utils stands in a room, and importing one room loads no other."""
    assert {path.name for path in (ROOT / "utils").glob("*.py")} == {"__init__.py"}
    assert MODULES["utils"] == set()
