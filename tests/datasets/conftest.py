"""Data sets of one's own, which tests write."""

import numpy as np
import pytest
from pictures import picture

from utils.datasets import images


@pytest.fixture
def folder(tmp_path):
    """Writes pictures: folder({"train/cat/a.png": image, ...}) gives the data set's root."""

    def write(files=None, classes=("cat", "dog"), splits=("train", "test")):
        root = tmp_path / "pets"
        for i, split in enumerate(splits):
            for j, name in enumerate(classes):
                for k in range(2):
                    save(root / split / name / f"{k}.png", picture(i + 2 * j + 4 * k))
        for name, image in (files or {}).items():
            save(root / name, image)
        return root

    def save(path, image):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)

    return write


@pytest.fixture
def npz(tmp_path):
    """Writes pets.npz: npz(shape, **changed)."""

    def write(shape=(24, 24, 3), **changed):
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 30), ("test", 12)):
            arrays[f"x_{split}"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(count) % 3
        path = tmp_path / "pets.npz"
        np.savez(path, **{k: v for k, v in (arrays | changed).items() if v is not None})
        return arrays

    return write


@pytest.fixture
def decoded(monkeypatch):
    """The paths that are decoded in the test."""
    paths, decode = [], images.decode

    def note(path, *arguments):
        paths.append(path)
        return decode(path, *arguments)

    monkeypatch.setattr("utils.datasets.images.decode", note)
    return paths
