"""Fixtures: the files shared with the authors of the design, and the scripts' command line."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fixed")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _shared(folder, name):
    path = SHARED / folder / name
    if not path.exists():
        pytest.skip(f"needs the shared file {folder}/{name}")
    return path


@pytest.fixture
def golden():
    """Path of a file with the authors' numbers; skips the test where there is none."""
    return lambda name: _shared("golden", name)


@pytest.fixture
def real_data():
    """Path of a file with real data; skips the test where there is none."""
    return lambda name: _shared("data", name)


@pytest.fixture
def script():
    """Runs a script as a user does, offline: script(name, *flags) gives the finished process."""

    def run(name, *flags):
        closed = "http://127.0.0.1:9"  # nobody listens there, so that a download fails at once
        environment = os.environ | {"http_proxy": closed, "https_proxy": closed, "no_proxy": ""}
        return subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, flags)],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def write_npz():
    """Writes a small random .npz data set: write_npz(folder, name, train=..., test=...)."""
    shapes = {
        "cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "svhn": (32, 32, 3),
        "mnist": (28, 28), "tiny": (64, 64, 3), "digits": (8, 8),
    }  # fmt: skip

    def write(folder, name, train=40, test=20, **changed):
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", train), ("test", test)):
            arrays[f"x_{split}"] = rng.integers(0, 256, (count, *shapes[name]), dtype=np.uint8)
            arrays[f"y_{split}"] = rng.integers(0, 10, count)
        arrays |= changed
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return path

    return write
