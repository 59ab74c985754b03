"""Data sets that are absent, damaged or of the wrong form."""

import gzip
import shutil
import zipfile

import numpy as np
import pytest

from utils.datasets import DATASETS, load_dataset
from utils.process.errors import UserError


def test_truncated_idx_files_are_named(tmp_path, write_idx_mnist):
    write_idx_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"mnist: MNIST/raw in .* damaged.* delete"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"train: No such file or directory; unpack"),
        (lambda root: shutil.rmtree(root / "train/n01/images"), r"n01: has no image"),
        (
            lambda root: (root / "val/images/val_2.JPEG").unlink(),
            r"images/val_2.JPEG: No such file or directory; unpack",
        ),
        (
            lambda root: (root / "train/n01/images/n01_1.JPEG").write_bytes(b"\xff\xd8no"),
            r"n01_1.JPEG: cannot be read",
        ),
        (
            lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn77\n"),
            r"val_annotations.txt: val_0.JPEG is of no class in train/; mend it",
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


@pytest.mark.parametrize("name", ["Tiny-ImageNet", ""])
def test_tiny_in_a_folder_of_another_name_is_refused_with_the_right_one(name, tmp_path, write_tiny):
    write_tiny(tmp_path / name)
    with pytest.raises(UserError, match=rf"--data_dir {tmp_path} .*nor tiny_imagenet_200/; unpack"):
        load_dataset("tiny", tmp_path)


def test_a_folder_called_npz_is_refused(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    with pytest.raises(UserError, match=r"mnist.npz: cannot be read as .npz .*Is a directory"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_messages_name_the_whole_path_of_a_relative_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--data_dir {tmp_path / 'here'} "):
        load_dataset(name, "here")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_absent_data_are_named_with_what_to_do_and_no_file_is_left(name, tmp_path):
    folder = tmp_path / "new" / "deep"
    with pytest.raises(UserError, match=rf"--data {name}.*{name}.npz"):
        load_dataset(name, folder)
    assert not [path for path in folder.rglob("*") if path.is_file()]


IMAGES = np.zeros((40, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": None}, "has no test images; add x_test and y_test or"),
        (
            {"y_train": np.zeros((40, 2), int)},
            r"y_train must hold one label, .* int64 \(40, 2\)",
        ),
        ({"x_train": IMAGES[..., :1]}, r"x_train must be uint8 .*3\), not uint8 \(40, 32, 32, 1\)"),
        ({"x_train": IMAGES[:, :28]}, r"x_train must be uint8 .*\(40, 28, 32, 3\)"),
        ({"x_train": IMAGES.astype(np.float32)}, "not float32"),
        (
            {"x_train": IMAGES[:0], "y_train": np.zeros(0, int)},
            r"x_train must be uint8 \(1 or more",
        ),
        ({"x_train": np.uint8(1)}, r"not uint8 \(\)"),
        (
            {"y_train": np.zeros(39, int)},
            "y_train must hold one label",
        ),
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


def test_a_data_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"--data_dir {tmp_path / 'file'} "):
        load_dataset("mnist", tmp_path / "file")
