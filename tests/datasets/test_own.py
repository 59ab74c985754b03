"""Data sets of one's own: .npz files, and what these and folders of images have in common."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from utils.datasets import DATASETS, OwnData, load_dataset, read_own
from utils.datasets.own import measure
from utils.process.errors import UserError


@pytest.mark.parametrize("shape", [(24, 24, 3), (7, 7, 1), (7, 7)])
def test_the_form_of_an_npz_is_read_from_it(shape, npz, tmp_path):
    arrays = npz(shape)
    own, data = read_own("pets", tmp_path)[1], load_dataset("pets", tmp_path)
    assert (own.classes, own.side, own.images) == (("0", "1", "2"), shape[0], (30, 12))
    assert own.channels == data.color_channel == (*shape, 1)[2]
    assert data.classes == 3 and data.image_size == shape[0]
    expected = torch.from_numpy(arrays["x_train"].reshape(30, *shape[:2], -1)).permute(0, 3, 1, 2)
    assert torch.equal(data.train_images, expected)
    assert data.test_labels.tolist() == arrays["y_test"].tolist()


def test_mean_and_deviation_are_those_of_the_training_images(npz, tmp_path):
    train = npz()["x_train"] / 255
    data = load_dataset("pets", tmp_path)
    assert data.mean == pytest.approx(train.mean((0, 1, 2)), rel=1e-12)
    assert data.std == pytest.approx(train.std((0, 1, 2)), rel=1e-12)
    inputs, _ = next(iter(data.test_batches(12)))
    expected = (data.test_images / 255 - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(
        data.std
    ).view(-1, 1, 1)
    torch.testing.assert_close(inputs, expected)


def test_sums_over_many_pixels_are_exact():
    pixels = np.full((3, 50, 67, 2), 255, np.uint8)
    pixels[0, 0, 0] = 254, 255
    (first, second), stds = measure(pixels)
    count = 3 * 50 * 67
    assert first == (255 * count - 1) / (255 * count) and second == 1
    assert stds[0] == pytest.approx((count - 1) ** 0.5 / count / 255, rel=1e-12)
    assert stds[1] == 1  # a constant channel becomes 0


def test_labels_may_be_a_column(npz, tmp_path):
    column = np.arange(30)[:, None] % 3
    npz(y_train=column)
    assert load_dataset("pets", tmp_path).train_labels.tolist() == column[:, 0].tolist()


@pytest.mark.parametrize("named", [False, True])
def test_test_images_alone_serve_a_model_that_knows_the_classes(named, npz, tmp_path):
    names = np.array(["a", "b", "c"])
    npz(classes=names)
    known = read_own("pets", tmp_path)[1]
    arrays = npz(x_train=None, y_train=None, classes=names if named else None)
    data = load_dataset("pets", tmp_path, image_size=20, known=known)
    assert data.test_labels.tolist() == arrays["y_test"].tolist()
    assert (data.classes, data.mean, data.std) == (3, known.mean, known.std)
    with pytest.raises(UserError, match="--data: has no training images"):
        data.train_batches(4, torch.Generator())


def test_test_images_alone_are_of_the_classes_that_the_model_knows(npz, tmp_path):
    npz()
    known = read_own("pets", tmp_path)[1]
    npz(x_train=None, y_train=None, y_test=np.arange(12) % 4)
    with pytest.raises(UserError, match=r"y_test must hold labels 0 ... 2, not 0 ... 3"):
        load_dataset("pets", tmp_path, known=known)
    npz(x_train=None, y_train=None, classes=np.array(["0", "1", "two"]))
    with pytest.raises(UserError, match="its classes 0, 1, two, not classes 0, 1, 2"):
        load_dataset("pets", tmp_path, known=known)


def published(arrays):
    """The arrays as MedMNIST names them."""
    names = {"x_train": "train_images", "y_train": "train_labels"}
    names |= {"x_test": "test_images", "y_test": "test_labels"}
    columns = {k: v[:, None] if k[0] == "y" else v for k, v in arrays.items()}
    return {names[key]: values for key, values in columns.items()}


def test_the_arrays_of_medmnist_are_read(npz, tmp_path, capsys):
    arrays = npz((28, 28))
    more = {"val_images": arrays["x_test"][:3], "val_labels": arrays["y_test"][:3, None]}
    np.savez(tmp_path / "pets.npz", **published(arrays), **more)
    data = load_dataset("pets", tmp_path)
    assert torch.equal(data.test_images[:, 0], torch.from_numpy(arrays["x_test"]))
    assert data.train_labels.tolist() == arrays["y_train"].tolist()
    said = "pets.npz: the test images are those of test_images; val_images is left out\n"
    assert said in capsys.readouterr().err


def test_the_words_for_splits_may_be_in_any_case(npz, tmp_path):
    arrays = npz()
    np.savez(tmp_path / "other.npz", **{name.title(): values for name, values in arrays.items()})
    data = load_dataset("other", tmp_path)
    assert data.train_labels.tolist() == arrays["y_train"].tolist()
    assert data.test_labels.tolist() == arrays["y_test"].tolist()


def test_several_labels_for_an_image_are_refused(npz, tmp_path):
    arrays = published(npz((28, 28)))
    np.savez(tmp_path / "pets.npz", **arrays | {"train_labels": np.ones((30, 14), np.uint8)})
    with pytest.raises(UserError, match=r"y_train must hold one label, .*\(30, 14\)"):
        read_own("pets", tmp_path)


def test_files_of_one_array_each_are_read(npz, tmp_path):
    arrays = npz((28, 28))
    whole = load_dataset("pets", tmp_path)
    (tmp_path / "pets.npz").unlink()
    for split in ("train", "test"):
        for key, name in (("x", "imgs"), ("y", "labels")):
            np.savez_compressed(tmp_path / f"pets-{split}-{name}.npz", arrays[f"{key}_{split}"])
    data = load_dataset("pets", tmp_path)
    assert torch.equal(data.train_images, whole.train_images)
    assert torch.equal(data.test_labels, whole.test_labels)
    (tmp_path / "pets-test-labels.npz").unlink()
    with pytest.raises(
        UserError, match=r"pets-\*.npz: has no test images; add x_test and y_test or"
    ):
        load_dataset("pets", tmp_path)


def test_a_fraction_of_each_class_is_set_aside_where_there_are_no_test_images(
    npz, tmp_path, capsys
):
    labels = np.array([0] * 10 + [1] * 5 + [2] * 2)
    images = np.arange(17, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8)
    npz(x_train=images, y_train=labels, x_test=None, y_test=None)
    data = load_dataset("pets", tmp_path, test_fraction=0.3)
    assert torch.bincount(data.test_labels).tolist() == [3, 2, 1]
    trained, tested = data.train_images[:, 0, 0, 0].tolist(), data.test_images[:, 0, 0, 0].tolist()
    assert sorted(trained + tested) == list(range(17))
    assert labels[tested].tolist() == data.test_labels.tolist()
    assert labels[trained].tolist() == data.train_labels.tolist()
    assert tested == [2, 4, 8, 10, 11, 16]  # these stay the same in all versions
    said = "pets.npz: 6 of 17 images, 0.3 of each class, are test images, which are the same for"
    assert said in capsys.readouterr().err
    assert read_own("pets", tmp_path, None, 0.9)[1].images == (3, 14)


def test_a_fraction_that_cannot_be_set_aside_is_refused(npz, tmp_path):
    npz()
    with pytest.raises(UserError, match=r"--test_fraction 0.2: .*pets.npz has test images; leave"):
        read_own("pets", tmp_path, None, 0.2)
    with pytest.raises(UserError, match="--test_fraction: digits has test images of its own"):
        load_dataset("digits", tmp_path, test_fraction=0.2)
    npz(x_test=None, y_test=None, y_train=np.array([0] * 29 + [1]))
    with pytest.raises(UserError, match="class 1 has one image; two are needed for a split"):
        read_own("pets", tmp_path, None, 0.2)


def test_a_model_of_a_split_is_tested_on_other_data_with_a_warning(npz, tmp_path, capsys):
    arrays = npz(x_test=None, y_test=None)
    known = read_own("pets", tmp_path, None, 0.2)[1]
    load_dataset("pets", tmp_path, known=known, test_fraction=0.2)
    assert "warning" not in capsys.readouterr().err
    npz(x_train=arrays["x_train"][:27], y_train=arrays["y_train"][:27], x_test=None, y_test=None)
    load_dataset("pets", tmp_path, known=known, test_fraction=0.2)
    again = "not 24 training and 6 test images; --test_fraction may choose test images that it was"
    assert again in capsys.readouterr().err
    npz()
    data = load_dataset("pets", tmp_path, known=known, test_fraction=0.2)
    assert len(data.test_images) == 12


def test_an_npz_may_name_its_classes(npz, tmp_path):
    npz(classes=np.array(["猫", "chien d'été", "c"]))
    assert read_own("pets", tmp_path)[1].classes == ("猫", "chien d'été", "c")


def test_images_that_are_not_square_need_a_size(npz, tmp_path):
    npz((20, 30, 3))
    with pytest.raises(UserError, match="--data pets: its images are not square; give --image_"):
        load_dataset("pets", tmp_path)
    data = load_dataset("pets", tmp_path, image_size=10)
    assert data.train_images.shape == (30, 3, 10, 10) and read_own("pets", tmp_path, 10)[1]
    whole = torch.from_numpy(np.load(tmp_path / "pets.npz")["x_train"]).permute(0, 3, 1, 2)
    expected = v2.Compose([v2.Resize(10, antialias=True), v2.CenterCrop(10)])(whole)
    assert (data.train_images.int() - expected.int()).abs().max() <= 1
    crops = load_dataset("pets", tmp_path, image_size=10, augment="resized_crop_flip")
    assert next(iter(crops.train_batches(30, torch.Generator())))[0].shape == (30, 3, 10, 10)


BAD_ARRAYS = [
    ({"x_train": None}, "pets.npz: has no training images; add some, or test a model that"),
    (
        {"y_test": None},
        "pets.npz: has no test images; add x_test and y_test or.*, or give --test_fraction",
    ),
    ({"y_train": np.zeros((30, 14), int)}, r"y_train must hold one label, .* int64 \(30, 14\)"),
    ({"x_train": np.zeros((30, 24, 24, 3))}, r"x_train must be uint8 .* not float64"),
    ({"x_train": np.zeros((30, 24, 24, 4), np.uint8)}, r"x_train must be uint8 .*, 1 or 3\)"),
    ({"x_train": np.zeros((30, 0, 24, 3), np.uint8)}, r"x_train must be uint8"),
    ({"x_train": np.zeros(30, np.uint8)}, r"x_train must be uint8 .* not uint8 \(30,\)"),
    (
        {"x_test": np.zeros((0, 24, 24, 3), np.uint8)},
        r"x_test must be uint8 \(1 or more",
    ),
    (
        {"x_test": np.zeros((12, 24, 23, 3), np.uint8)},
        r"x_test must be uint8 \(1 or more",
    ),
    ({"x_test": np.zeros((12, 24, 24), np.uint8)}, r"x_test must be .*not uint8 \(12, 24, 24, 1"),
    (
        {"y_train": np.arange(30) % 3 + 1},
        "y_train has 3 different labels up to 3; number",
    ),
    ({"y_train": np.arange(30) % 3 - 1}, r"must hold labels 0 ... 1, not -1 ... 1"),
    (
        {"y_train": np.zeros(30, int), "y_test": np.zeros(12, int)},
        "has 1 different .*; two",
    ),
    (
        {"y_train": np.array(["a", "b", "c"] * 10)},
        "y_train must hold one label",
    ),
    ({"y_train": np.arange(30.0) % 3}, "y_train must hold one label"),
    ({"y_train": np.zeros(29, int)}, "y_train must hold one label"),
    ({"y_train": np.array(2**63, np.uint64)}, "y_train must hold one label"),
    ({"y_test": np.full(12, 3)}, r"y_test must hold labels 0 ... 2, not 3 ... 3"),
    ({"classes": np.array(["a", "b"])}, "classes must hold the name of each of 3 classes"),
    ({"classes": np.arange(3)}, "classes must hold the name of each"),
    ({"classes": np.array([["a"], ["b"], ["c"]])}, "classes must hold the name of each"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_ARRAYS)
def test_an_npz_of_the_wrong_form_is_refused(changed, message, npz, tmp_path):
    npz(**changed)
    with pytest.raises(UserError, match=message):
        read_own("pets", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pets.npz", r"is no name of a data set; give .* without .npz"),
        ("data/pets", "is no name of a data set; give .* folder that holds it as --data_dir"),
        ("..", "is no name of a data set"),
        ("", "is no name of a data set"),
        ("a\nb", "is no name of a data set"),
        ("a\0b", "is no name of a data set"),
        ("x" * 300, "--data x{300}: .* cannot be read .File name too long"),
        ("cifer10", f"choose one of {', '.join(DATASETS)}, or put cifer10.npz or cifer10/"),
    ],
)
def test_a_name_that_is_none_is_refused(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_own(name, tmp_path)


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_more_data_than_memory_holds_are_refused_unread(
    kind, npz, folder, tmp_path, monkeypatch, decoded
):
    npz() if kind == "npz" else folder()
    monkeypatch.setattr("utils.datasets.arrays.available_memory", lambda: 30_000)
    with pytest.raises(UserError, match=r"pets(.npz)?: its images take 0.0 GB, and memory has"):
        read_own("pets", tmp_path)
    assert not decoded


def test_a_description_survives_its_file(npz, tmp_path):
    npz()
    own = read_own("pets", tmp_path)[1]
    assert OwnData.of(own.plain()) == own and own.difference(own) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": ["a"]},
        {"channels": 2},
        {"side": 0},
        {"mean": [0.5]},
        {"std": [0.0, 1.0, 1.0]},
        {"more": 1},
    ],
    ids=str,
)
def test_an_impossible_description_is_refused(changed, npz, tmp_path):
    npz()
    plain = read_own("pets", tmp_path)[1].plain()
    with pytest.raises(UserError, match="own_data: describes no data set"):
        OwnData.of(plain | changed)
