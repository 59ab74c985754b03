"""Data sets that are absent, damaged or of the wrong form."""

import gzip
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from utils.datasets import DATASETS, load_dataset
from utils.process.errors import UserError


def test_truncated_idx_files_are_named(tmp_path, write_idx_mnist):
    write_idx_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"mnist: .*MNIST is damaged .* delete"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"train: no such folder"),
        (lambda root: (root / "val/val_annotations.txt").write_text("\n"), r"names no image"),
        (
            lambda root: [(root / "train" / f"m{i}").mkdir() for i in range(199)],
            r"train: has 201 classes; 1 to 200 are due",
        ),
        (lambda root: shutil.rmtree(root / "train/n01/images"), r"n01: holds no .JPEG images"),
        (
            lambda root: (root / "val/images/val_2.JPEG").unlink(),
            r"line 3: .*images/val_2.JPEG is missing",
        ),
        (
            lambda root: (root / "train/n01/images/n01_1.JPEG").write_bytes(b"\xff\xd8no"),
            r"n01_1.JPEG: cannot be read",
        ),
        (
            lambda root: Image.new("RGB", (65, 64)).save(root / "train/n01/images/n01_1.JPEG"),
            r"n01_1.JPEG: is \(65, 64\), not 64x64",
        ),
        (
            lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn77\n"),
            r"val_annotations.txt, line 1: no class 'n77'",
        ),
    ],
)
def test_damaged_tiny_folders_are_named_and_leave_no_cache(damage, message, tmp_path, write_tiny):
    write_tiny(tmp_path / "tiny_imagenet_200")
    damage(tmp_path / "tiny_imagenet_200")
    with pytest.raises(UserError, match=message):
        load_dataset("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_imagenet_200"]


@pytest.mark.parametrize("name", ["cifar10", "mnist", "digits"])
def test_class_folders_are_refused_and_nothing_is_downloaded(name, tmp_path):
    (tmp_path / name / "train" / "cat").mkdir(parents=True)
    message = rf"--data {name}: {tmp_path / name} holds class folders, and {name} is another"
    with pytest.raises(UserError, match=message):
        load_dataset(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_class_folders_beside_a_data_set_are_left_alone(tmp_path, write_idx_mnist):
    (tmp_path / "mnist" / "train" / "0").mkdir(parents=True)
    write_idx_mnist(tmp_path)
    assert len(load_dataset("mnist", tmp_path).train_labels) == 9


@pytest.mark.parametrize("name", ["tiny-imagenet-200", "tiny_imagenet_200", "images"])
def test_the_folder_of_tiny_itself_is_refused_with_the_one_that_is_due(name, tmp_path, write_tiny):
    write_tiny(tmp_path / name)
    message = rf"--data_dir {tmp_path / name} .* data set itself, give the folder .* {tmp_path}$"
    with pytest.raises(UserError, match=message):
        load_dataset("tiny", tmp_path / name)


@pytest.mark.parametrize("name", ["Tiny-ImageNet-200", "tiny-imagenet", "tiny imagenet", "tiny"])
def test_another_spelling_of_tiny_is_refused_with_the_right_one(name, tmp_path, write_tiny):
    write_tiny(tmp_path / name)
    message = (
        rf"--data_dir {tmp_path} .*; if {name}/ is the data set, rename it to tiny_imagenet_200$"
    )
    with pytest.raises(UserError, match=message):
        load_dataset("tiny", tmp_path)


def test_a_folder_called_npz_is_refused(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    with pytest.raises(UserError, match=r"mnist.npz: is a folder where a file is to be"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_messages_name_the_whole_path_of_a_relative_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--data_dir {tmp_path / 'here'} "):
        load_dataset(name, "here")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_absent_data_are_named_with_what_to_do_and_nothing_is_written(name, tmp_path):
    folder = tmp_path / "new" / "deep"
    with pytest.raises(UserError, match=rf"--data {name}.*{name}.npz"):
        load_dataset(name, folder)
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_svhn_that_is_absent_is_named(tmp_path):
    (tmp_path / "train_32x32.mat").write_bytes(b"")
    message = rf"test_32x32.mat is absent from --data_dir {tmp_path} .*put svhn.npz there"
    with pytest.raises(UserError, match=message):
        load_dataset("svhn", tmp_path)


IMAGES = np.zeros((40, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": None}, "has no test images; add x_test and y_test"),
        ({"y_train": np.zeros((40, 2), int)}, "y_train has 2 labels for each image"),
        ({"x_train": IMAGES[..., :1]}, r"x_train must be uint8 .*3\), not uint8 \(40, 32, 32, 1\)"),
        ({"x_train": IMAGES[:, :28]}, r"x_train must be uint8 .*\(40, 28, 32, 3\)"),
        ({"x_train": IMAGES.astype(np.float32)}, "not float32"),
        ({"x_train": IMAGES[:0], "y_train": np.zeros(0, int)}, "x_train holds no image"),
        ({"x_train": np.uint8(1)}, r"not uint8 \(\)"),
        ({"y_train": np.zeros(39, int)}, r"y_train must hold one integer for each of 40 images"),
        ({"y_train": np.zeros(40)}, "y_train must hold .* not float64"),
        ({"y_train": np.full(40, 10)}, r"labels 0 ... 9, not 10 ... 10"),
        ({"y_test": np.full(20, -1)}, r"y_test must hold labels 0 ... 9, not -1"),
        ({"y_test": np.zeros(20, "m8[s]")}, "not timedelta64"),
        (
            {"y_test": np.array([None] * 20)},
            "cannot be read .*Object arrays",
        ),  # a pickle: not even opened
    ],
)
def test_wrong_npz_arrays_are_named(changed, message, tmp_path, write_npz):
    write_npz(tmp_path, "cifar10", **changed)
    with pytest.raises(UserError, match=rf"cifar10.npz.*{message}"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -50])
def test_truncated_npz_is_named(keep, tmp_path, write_npz):
    path = write_npz(tmp_path, "mnist")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"mnist.npz: cannot be read"):
        load_dataset("mnist", tmp_path)


def test_npz_with_flipped_bytes_is_named(tmp_path, write_npz):
    path = write_npz(tmp_path, "mnist")
    file = dict(np.load(path))
    np.savez_compressed(path, **file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mnist.npz: cannot be read"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    "content", [gzip.compress(b"x", mtime=0), b"\x80\x04N.", b"text", np.zeros(3)]
)
def test_other_files_named_npz_are_refused(content, tmp_path):
    path = tmp_path / "mnist.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, content)
    with pytest.raises(UserError, match=r"mnist.npz: "):
        load_dataset("mnist", tmp_path)


def test_unknown_names_are_refused(tmp_path):
    message = rf"--data imagenet: choose one of cifar10, .* into --data_dir {tmp_path}"
    with pytest.raises(UserError, match=message):
        load_dataset("imagenet", tmp_path)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        archive.writestr("x_train", b"text")
    with pytest.raises(UserError, match=r"mnist.npz: holds no x_train"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("name", ["file", "x" * 300])
def test_a_data_folder_that_is_none_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"--data_dir .*{name}.*name (one|a folder)"):
        load_dataset("mnist", tmp_path / name)
