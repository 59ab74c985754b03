"""Every data set, through .npz and through its own layout; and what is refused."""

import gzip
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from utils import readers
from utils.datasets import DATASETS, load_dataset
from utils.errors import UserError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("name", DATASETS)
def test_npz_loads_as_uint8_channels_first(name, tmp_path, write_npz):
    path = write_npz(tmp_path, name)
    file, dataset, info = np.load(path), load_dataset(name, tmp_path), DATASETS[name]
    assert dataset.train_images.dtype == dataset.test_images.dtype == torch.uint8
    assert dataset.train_images.shape == (40, info.channels, info.side, info.side)
    side = info.input_side or info.side
    assert dataset.test_images.shape == (20, info.channels, side, side)
    assert dataset.classes == info.classes and len(dataset.mean) == info.channels
    np.testing.assert_array_equal(dataset.train_labels, file["y_train"])
    images = file["x_train"].reshape(40, info.side, info.side, info.channels)
    np.testing.assert_array_equal(dataset.train_images.permute(0, 2, 3, 1), images)


def test_mnist_is_padded_by_two_and_digits_enlarged_four_times(tmp_path, write_npz):
    write_npz(tmp_path, "mnist")
    small = load_dataset("mnist", tmp_path).train_images
    padded = load_dataset("mnist", tmp_path, image_size=32).train_images
    assert torch.equal(padded[:, :, 2:-2, 2:-2], small)
    assert padded.sum() == small.sum()
    small = load_dataset("digits", tmp_path).test_images
    large = load_dataset("digits", tmp_path, image_size=32).test_images
    assert large.shape[2:] == (32, 32)
    assert torch.equal(large[:, :, 2::4, 3::4], small)


def test_tiny_keeps_whole_images_for_training_and_shrinks_test_images(tmp_path, write_npz):
    write_npz(tmp_path, "tiny", x_test=np.full((20, 64, 64, 3), 7, np.uint8))
    dataset = load_dataset("tiny", tmp_path, image_size=32)
    assert dataset.train_images.shape[2:] == (64, 64)
    assert torch.equal(dataset.test_images, torch.full((20, 3, 32, 32), 7, dtype=torch.uint8))
    inputs, _ = next(iter(dataset.train_batches(8, torch.Generator())))
    assert inputs.shape == (8, 3, 32, 32)


def test_colour_channels_are_converted(tmp_path, write_npz):
    write_npz(tmp_path, "cifar10")
    write_npz(tmp_path, "mnist")
    grey = load_dataset("cifar10", tmp_path, color_channel=1)
    first = load_dataset("cifar10", tmp_path).train_images[0].permute(1, 2, 0).numpy()
    pillow = np.asarray(Image.fromarray(first).convert("L"))
    np.testing.assert_allclose(grey.train_images[0, 0], pillow, atol=1)
    assert grey.color_channel == 1 and len(grey.mean) == len(grey.std) == 1
    three = load_dataset("mnist", tmp_path, color_channel=3)
    assert three.train_images.shape[1] == len(three.mean) == 3
    assert torch.equal(three.train_images[:, 0], three.train_images[:, 2])


def test_digits_are_embedded_and_normalised_by_their_own_statistics(tmp_path):
    dataset = load_dataset("digits", tmp_path)
    assert len(dataset.train_labels) == 1437 and len(dataset.test_labels) == 360
    pixels = dataset.train_images.double() / 255
    assert pixels.mean().item() == pytest.approx(dataset.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(dataset.std[0], abs=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_svhn_is_read_from_its_mat_files(tmp_path, monkeypatch):
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("test", 7)):
        x = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        y = rng.integers(1, 11, (count, 1), dtype=np.uint8)  # digit 0 is class 10 in these files
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": y})
        arrays[split] = x.transpose(3, 2, 0, 1), y[:, 0] % 10
    unchecked = {
        split: [url, name, None] for split, (url, name, _) in datasets.SVHN.split_list.items()
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", unchecked)
    dataset = load_dataset("svhn", tmp_path)
    np.testing.assert_array_equal(dataset.train_images, arrays["train"][0])
    np.testing.assert_array_equal(dataset.train_labels, arrays["train"][1])
    np.testing.assert_array_equal(dataset.test_labels, arrays["test"][1])


@pytest.mark.parametrize(
    ("name", "folder", "key", "files", "of"),
    [
        ("cifar10", "cifar-10-batches-py", "labels", [f"data_batch_{i}" for i in range(1, 6)],
         datasets.CIFAR10),
        ("cifar100", "cifar-100-python", "fine_labels", ["train"], datasets.CIFAR100),
    ],
)  # fmt: skip
def test_cifar_is_read_from_its_batches(name, folder, key, files, of, tmp_path, monkeypatch):
    rng, root = np.random.default_rng(0), tmp_path / folder
    root.mkdir()
    test = "test_batch" if name == "cifar10" else "test"
    rows, labels = {}, {}
    for file in [*files, test]:
        rows[file] = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
        labels[file] = rng.integers(0, 10, 6).tolist()
        (root / file).write_bytes(pickle.dumps({"data": rows[file], key: labels[file]}))
    meta = root / of.meta["filename"]
    meta.write_bytes(pickle.dumps({of.meta["key"]: [str(i) for i in range(10)]}))
    monkeypatch.setattr(of, "train_list", [[file, None] for file in files])
    monkeypatch.setattr(of, "test_list", [[test, None]])
    monkeypatch.setattr(of, "meta", of.meta | {"md5": None})
    dataset = load_dataset(name, tmp_path)
    expected = np.concatenate([rows[file] for file in files]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(dataset.train_images, expected)
    expected = np.concatenate([labels[file] for file in files])
    np.testing.assert_array_equal(dataset.train_labels, expected)
    np.testing.assert_array_equal(dataset.test_images, rows[test].reshape(-1, 3, 32, 32))


def write_idx_mnist(root):
    """MNIST's own files; returns the images and labels of both splits."""
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


def test_mnist_is_read_from_its_idx_files_like_from_npz(tmp_path):
    arrays = write_idx_mnist(tmp_path)
    own = load_dataset("mnist", tmp_path)
    packed = {f"{letter}_{split}": arrays[split][i] for split in arrays for i, letter in
              enumerate("xy")}  # fmt: skip
    np.savez(tmp_path / "mnist.npz", **packed)
    npz = load_dataset("mnist", tmp_path)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(own, name), getattr(npz, name))


def test_truncated_idx_files_are_named(tmp_path):
    write_idx_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"mnist.*damaged"):
        load_dataset("mnist", tmp_path)


def write_tiny(root, annotated=True):
    """Two classes in the real layout; returns the true label of each validation image."""
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
        (root / "val" / "val_annotations.txt").write_text("".join(lines))


def test_tiny_takes_its_labels_from_val_annotations(tmp_path):
    write_tiny(tmp_path / "tiny_imagenet_200")
    dataset = load_dataset("tiny", tmp_path)
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_labels.tolist() == [1, 0, 1, 1]
    image = Image.open(tmp_path / "tiny_imagenet_200/train/n01/images/n01_0.JPEG")
    np.testing.assert_array_equal(dataset.train_images[0].permute(1, 2, 0), np.asarray(image))


def test_tiny_takes_its_labels_from_sorted_folders(tmp_path):
    write_tiny(tmp_path / "tiny_imagenet_200", annotated=False)
    assert load_dataset("tiny", tmp_path).test_labels.tolist() == [0, 1, 1, 1]


def test_tiny_is_decoded_once_until_its_files_change(tmp_path, monkeypatch):
    root = tmp_path / "tiny_imagenet_200"
    write_tiny(root)
    first, decode = load_dataset("tiny", tmp_path), readers._decode
    monkeypatch.setattr(readers, "_decode", None)
    assert torch.equal(load_dataset("tiny", tmp_path).train_images, first.train_images)
    monkeypatch.setattr(readers, "_decode", decode)
    (root / "train" / "n01" / "images" / "n01_2.JPEG").unlink()
    assert len(load_dataset("tiny", tmp_path).train_images) == 5
    (tmp_path / "tiny_imagenet_200.cache.npz").write_bytes(b"damaged")
    assert len(load_dataset("tiny", tmp_path).train_images) == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"train: no such folder"),
        (lambda root: shutil.rmtree(root / "train/n01/images"), r"n01: holds no .JPEG images"),
        (lambda root: (root / "val/images/val_2.JPEG").unlink(), r"val_2.JPEG: cannot be read"),
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
def test_damaged_tiny_folders_are_named_and_leave_no_cache(damage, message, tmp_path):
    write_tiny(tmp_path / "tiny_imagenet_200")
    damage(tmp_path / "tiny_imagenet_200")
    with pytest.raises(UserError, match=message):
        load_dataset("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_imagenet_200"]


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_absent_data_are_named_with_what_to_do_and_nothing_is_written(name, tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(UserError, match=rf"--data {name}.*{name}.npz"):
        load_dataset(name, folder)
    assert not folder.exists()


IMAGES = np.zeros((40, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": None}, "holds no x_test"),
        ({"x_train": IMAGES[..., :1]}, r"x_train must be uint8 .*3\), not uint8 \(40, 32, 32, 1\)"),
        ({"x_train": IMAGES[:, :28]}, r"x_train must be uint8 .*\(40, 28, 32, 3\)"),
        ({"x_train": IMAGES.astype(np.float32)}, "not float32"),
        ({"x_train": IMAGES[:0], "y_train": np.zeros(0, int)}, r"\(0, 32, 32, 3\)"),
        ({"x_train": np.uint8(1)}, r"not uint8 \(\)"),
        ({"y_train": np.zeros(39, int)}, r"y_train must hold one integer for each of 40 images"),
        ({"y_train": np.zeros(40)}, "y_train must hold .* not float64"),
        ({"y_train": np.full(40, 10)}, r"labels 0 ... 9, not 10 ... 10"),
        ({"y_test": np.full(20, -1)}, r"y_test must hold labels 0 ... 9, not -1"),
        ({"y_test": np.array([None] * 20)}, "cannot be read"),  # a pickle: not even opened
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


@pytest.mark.parametrize("content", [gzip.compress(b"x"), b"\x80\x04N.", b"text", np.zeros(3)])
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
    with pytest.raises(ValueError, match="imagenet"):
        load_dataset("imagenet", tmp_path)


def test_real_mnist_loads(real_data):
    dataset = load_dataset("mnist", real_data("mnist.npz").parent)
    assert len(dataset.train_labels) == 60000 and len(dataset.test_labels) == 10000
    assert dataset.train_images.double().mean() / 255 == pytest.approx(dataset.mean[0], abs=1e-3)


def test_real_tiny_imagenet_classes_load_and_give_batches(real_data, tmp_path):
    with zipfile.ZipFile(real_data("tiny-imagenet-20-classes.zip")) as archive:
        archive.extractall(tmp_path)
    dataset = load_dataset("tiny", tmp_path, image_size=32)
    assert len(dataset.train_labels) == 2000 and len(dataset.test_labels) == 1000
    assert dataset.test_labels.bincount().tolist() == [50] * 20
    inputs, targets = next(iter(dataset.train_batches(128, torch.Generator())))
    assert inputs.shape == (128, 3, 32, 32) and targets.max() < 20
    assert inputs.mean().abs() < 0.5 and 0.5 < inputs.std() < 1.5
