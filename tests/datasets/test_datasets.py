"""Every data set, through .npz and through its own layout; and what is refused."""

import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2.functional import resize

from utils.datasets import DATASETS, images, load_dataset
from utils.process.errors import UserError


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


@pytest.mark.parametrize("name", DATASETS)
def test_an_npz_may_have_test_images_alone_which_serve_no_training(name, tmp_path, write_npz):
    write_npz(tmp_path, name)
    whole = load_dataset(name, tmp_path)
    labels = whole.test_labels[:, None].numpy()
    write_npz(tmp_path, name, x_train=None, y_train=None, y_test=labels)
    data = load_dataset(name, tmp_path)
    assert torch.equal(data.test_images, whole.test_images)
    assert torch.equal(data.test_labels, whole.test_labels)
    with pytest.raises(UserError, match="--data: has no training images; add some, or give"):
        data.train_batches(8, torch.Generator())


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


@pytest.mark.parametrize("side", [12, 32, 50])
def test_images_are_resized_as_torchvision_does_if_that_is_asked_for(side, tmp_path, write_npz):
    write_npz(tmp_path, "cifar10")
    whole = load_dataset("cifar10", tmp_path).test_images
    found = load_dataset("cifar10", tmp_path, image_size=side, resize=True).test_images
    expected = resize(whole.float(), [side], antialias=True).round()
    assert (found - expected).abs().max() <= 1


def test_an_augmentation_that_is_asked_for_takes_the_place_of_the_data_sets(tmp_path, write_npz):
    write_npz(tmp_path, "cifar10")

    def first_batch(**options):
        batches = load_dataset("cifar10", tmp_path, **options).train_batches(40, torch.Generator())
        return next(iter(batches))[0], batches.take(batches._new_order())[0]

    def sums(inputs):
        return inputs.sum((1, 2, 3)).sort().values

    torch.testing.assert_close(*map(sums, first_batch(augment="none")))  # in another order
    first, second = map(sums, first_batch())
    assert not torch.allclose(first, second)  # shifted over black borders
    resized, _ = first_batch(augment="resized_crop_flip", image_size=24, resize=True)
    assert resized.shape == (40, 3, 24, 24)


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


def test_cifar100_is_normalised_by_its_own_statistics():
    """In units of a pixel's 255 levels they are widely published with one decimal."""
    info = DATASETS["cifar100"]
    assert [255 * v for v in info.mean] == pytest.approx([129.3, 124.1, 112.4], abs=0.06)
    assert [255 * v for v in info.std] == pytest.approx([68.2, 65.4, 70.4], abs=0.06)


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
        (
            "cifar10",
            "cifar-10-batches-py",
            "labels",
            [f"data_batch_{i}" for i in range(1, 6)],
            datasets.CIFAR10,
        ),
        ("cifar100", "cifar-100-python", "fine_labels", ["train"], datasets.CIFAR100),
    ],
)
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


def test_mnist_is_read_from_its_idx_files_like_from_npz(tmp_path, write_idx_mnist):
    arrays = write_idx_mnist(tmp_path)
    own = load_dataset("mnist", tmp_path)
    packed = {
        f"{letter}_{split}": arrays[split][i] for split in arrays for i, letter in enumerate("xy")
    }
    np.savez(tmp_path / "mnist.npz", **packed)
    npz = load_dataset("mnist", tmp_path)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(own, name), getattr(npz, name))


def test_tiny_takes_its_labels_from_val_annotations(tmp_path, write_tiny):
    write_tiny(tmp_path / "tiny_imagenet_200")
    dataset = load_dataset("tiny", tmp_path)
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_labels.tolist() == [1, 0, 1, 1]
    image = Image.open(tmp_path / "tiny_imagenet_200/train/n01/images/n01_0.JPEG")
    np.testing.assert_array_equal(dataset.train_images[0].permute(1, 2, 0), np.asarray(image))


def test_tiny_takes_its_labels_from_sorted_folders(tmp_path, write_tiny):
    write_tiny(tmp_path / "tiny_imagenet_200", annotated=False)
    assert load_dataset("tiny", tmp_path).test_labels.tolist() == [0, 1, 1, 1]


def test_tiny_is_decoded_once_until_its_files_change(tmp_path, monkeypatch, write_tiny):
    root = tmp_path / "tiny_imagenet_200"
    write_tiny(root)
    first, decode = load_dataset("tiny", tmp_path), images._decode
    monkeypatch.setattr(images, "_decode", None)
    assert torch.equal(load_dataset("tiny", tmp_path).train_images, first.train_images)
    monkeypatch.setattr(images, "_decode", decode)
    other = root / "train" / "n01" / "images" / "n01_0.JPEG"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(other)
    assert torch.equal(load_dataset("tiny", tmp_path).train_images[0].unique(), torch.tensor([9]))
    (root / "train" / "n01" / "images" / "n01_2.JPEG").unlink()
    assert len(load_dataset("tiny", tmp_path).train_images) == 5
    (tmp_path / "tiny_imagenet_200.64x64.cache.npz").write_bytes(b"damaged")
    assert len(load_dataset("tiny", tmp_path).train_images) == 5


def test_decoding_tiny_is_told_once_in_one_line(tmp_path, capsys, write_tiny):
    write_tiny(tmp_path / "tiny_imagenet_200")
    load_dataset("tiny", tmp_path)
    cache = tmp_path / "tiny_imagenet_200.64x64.cache.npz"
    size = f"{cache.stat().st_size / 1e6:,.1f} MB"
    assert capsys.readouterr() == (
        "",
        f"note: decoding the 10 images of {tmp_path}/tiny_imagenet_200 once; {cache} will keep"
        f" them, in {size}\n",
    )
    load_dataset("tiny", tmp_path)
    assert capsys.readouterr() == ("", "")


def test_real_cifar10_loads_and_gives_batches(real_data, tmp_path):
    unpack = real_data("unpack_cifar10.py")
    subprocess.run([sys.executable, unpack, tmp_path], check=True, stdout=subprocess.DEVNULL)
    dataset = load_dataset("cifar10", tmp_path, image_size=32)
    assert dataset.train_labels.bincount().tolist() == [5000] * 10
    assert dataset.test_labels.bincount().tolist() == [1000] * 10
    means = dataset.train_images.sum((0, 2, 3)) / (255 * 50000 * 32**2)
    assert means.tolist() == pytest.approx(dataset.mean, abs=1e-3)
    inputs, _ = next(iter(dataset.train_batches(128, torch.Generator())))
    assert inputs.shape == (128, 3, 32, 32)


def test_real_mnist_loads(real_data):
    dataset = load_dataset("mnist", real_data("mnist.npz").parent)
    assert len(dataset.train_labels) == 60000 and len(dataset.test_labels) == 10000
    mean = dataset.train_images.sum() / (255 * dataset.train_images.numel())
    assert mean == pytest.approx(dataset.mean[0], abs=1e-3)


def test_real_tiny_imagenet_classes_load_and_give_batches(real_data, tmp_path):
    with zipfile.ZipFile(real_data("tiny-imagenet-20-classes.zip")) as archive:
        archive.extractall(tmp_path)
    dataset = load_dataset("tiny", tmp_path, image_size=32)
    assert len(dataset.train_labels) == 2000 and len(dataset.test_labels) == 1000
    assert dataset.test_labels.bincount().tolist() == [50] * 20
    inputs, targets = next(iter(dataset.train_batches(128, torch.Generator())))
    assert inputs.shape == (128, 3, 32, 32) and targets.max() < 20
    assert inputs.mean().abs() < 0.5 and 0.5 < inputs.std() < 1.5
