"""Fixtures: golden numbers and real data, small data sets, and the scripts' command line."""

import errno
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from runs import DIGITS, FLAGS, ROOT, SETTINGS, main_of, outcome

import train_prune
from utils.process.errors import notify
from utils.process.signals import Stopped
from utils.settings.config import Config
from utils.train.checkpointing import Checkpointer

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("fixed")

GOLDEN = ROOT / "tests" / "golden"
REAL_DATA = ROOT.parent / "shared" / "data"


def pytest_configure():
    """In a job in the background SIGINT is ignored, and processes that tests start inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):  # `keywords` has the names of folders, too
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def golden():
    """Path of a file with the authors' numbers; tests/golden/README.md explains them."""
    return lambda name: GOLDEN / name


@pytest.fixture
def real_data():
    """Path of a file with real data, kept beside the checkout; skips the test without it."""

    def path_of(name):
        path = REAL_DATA / name
        if not path.exists():
            pytest.skip(f"needs real data: {name} in a folder shared/data beside the checkout")
        return path

    return path_of


@pytest.fixture
def script():
    """Runs a script as a user does, offline: script(name, *flags) gives the finished process."""

    def run(name, *flags, stdout=subprocess.PIPE):
        return subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, flags)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def write_npz():
    """Writes a small random .npz data set: write_npz(folder, name, train=..., test=...)."""
    shapes = {
        "cifar10": (32, 32, 3),
        "cifar100": (32, 32, 3),
        "svhn": (32, 32, 3),
        "mnist": (28, 28),
        "tiny": (64, 64, 3),
        "digits": (8, 8),
    }

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


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test waits for a network: every download fails at once."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture
def write_idx_mnist():
    """Writes MNIST's own files: write_idx_mnist(folder) gives images and labels of both splits."""

    def write(root):
        rng, arrays = np.random.default_rng(0), {}
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for split, prefix, count in (("train", "train", 9), ("test", "t10k", 5)):
            x = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            y = rng.integers(0, 10, count, dtype=np.uint8)
            images = struct.pack(">IIII", 0x803, count, 28, 28) + x.tobytes()
            labels = struct.pack(">II", 0x801, count) + y.tobytes()
            (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
            (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
            arrays[split] = x, y
        return arrays

    return write


@pytest.fixture
def write_tiny():
    """Writes two classes of Tiny-ImageNet: write_tiny(folder, annotated=True)."""

    def write(root, annotated=True):
        rng = np.random.default_rng(0)

        def save(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")

        wnids = ["n02", "n01"]
        for wnid in wnids:
            for i in range(3):
                save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        lines = []
        for i, wnid in enumerate(["n02", "n01", "n02", "n02"]):
            if annotated:
                save(root / "val" / "images" / f"val_{i}.JPEG")
                lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
            else:
                save(root / "val" / wnid / f"val_{i}.JPEG")
        if annotated:
            (root / "val" / "val_annotations.txt").write_text("".join(lines) + "\n")

    return write


@pytest.fixture
def quick(capsys):
    """Runs a script's main in this process: quick(name, *flags) gives status, output, errors."""

    def run(name, *flags):
        notify.cache_clear()
        status = main_of(name)([str(flag) for flag in flags])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert train_prune.main([*DIGITS, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A folder with a trained model of the settings DIGITS."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """What a run of the settings in `runs` leaves when nothing happens to it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train_prune.main([*FLAGS, "--output_dir", str(folder)]) == 0
    return outcome(folder)


@pytest.fixture(autouse=True)
def no_note_is_known():
    """Each test is a process of its own."""
    notify.cache_clear()


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    """However short it is."""
    monkeypatch.setattr("utils.train.checkpointing.SAVE_SECONDS", 0)


@pytest.fixture(autouse=True)
def no_training_is_drawn(monkeypatch):
    """Drawing would take longer than most of the tests' trainings."""
    monkeypatch.setattr("utils.train.recording.plot_training", lambda *_: None)


@pytest.fixture
def drawing():
    """Pictures are drawn in the tests that use this."""


@pytest.fixture(autouse=True)
def pictures_are_blank(request, monkeypatch):
    """Drawing would take longer than most tests."""
    if "drawing" not in request.fixturenames:
        blank = lambda figure, file, **_: file.write(b"blank")  # noqa: E731
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", blank)


@pytest.fixture
def fill_disk(monkeypatch):
    """fill_disk(is_full) makes each write fail for which is_full(n) is true; n counts from 1."""

    def fill(is_full=lambda n: True):
        sync, writes = os.fsync, itertools.count(1)

        def sync_if_there_is_room(descriptor):
            if is_full(next(writes)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        monkeypatch.setattr("utils.process.writing.os.fsync", sync_if_there_is_room)

    return fill


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n) makes the next run stop when it has saved n epochs."""

    def arrange(epochs):
        save = Checkpointer.save

        def save_and_stop(checkpoints, state):
            save(checkpoints, state)
            if state.recorder.epoch == epochs:
                monkeypatch.setattr(Checkpointer, "save", save)
                raise Stopped(signal.SIGTERM)

        monkeypatch.setattr(Checkpointer, "save", save_and_stop)

    return arrange


@pytest.fixture
def stop_within(monkeypatch):
    """stop_within(n) sends the process a signal in the n-th of the steps taken from then on.

    Returns a list with an entry for each of them.
    """

    def arrange(steps, number=signal.SIGTERM):
        train_step, calls = train_prune.train_step, []

        def signalled(*arguments):
            calls.append(1)
            if len(calls) == steps:
                os.kill(os.getpid(), number)
            return train_step(*arguments)

        monkeypatch.setattr(train_prune, "train_step", signalled)
        return calls

    return arrange


@pytest.fixture
def stopped(quick, tmp_path, stop_after):
    """The files of a run that was stopped when two epochs were complete."""
    stop_after(2)
    assert quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)[0] == 143
    return Config(**SETTINGS, output_dir=tmp_path).files
