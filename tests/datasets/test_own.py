"""Data sets of one's own: .npz files and folders of images."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from utils.datasets import DATASETS, OwnData, describe_own, images, load_dataset
from utils.datasets.own import measure, read_own
from utils.process.errors import UserError


def picture(shade=0, size=(32, 32), mode="RGB"):
    """A smooth picture, since photos are."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = [np.sin(x + shade), np.cos(y * shade), np.sin(x * y)]
    return Image.fromarray((127 * (1 + np.stack(waves, 2))).astype(np.uint8)).convert(mode)


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


@pytest.mark.parametrize("shape", [(24, 24, 3), (7, 7, 1), (7, 7)])
def test_the_form_of_an_npz_is_read_from_it(shape, npz, tmp_path):
    arrays = npz(shape)
    own, data = describe_own("pets", tmp_path, None), load_dataset("pets", tmp_path)
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


def test_sums_over_many_pixels_are_exact(monkeypatch):
    monkeypatch.setattr("utils.datasets.own.CHUNK", 1000)
    pixels = np.full((3, 50, 67, 2), 255, np.uint8)
    pixels[0, 0, 0] = 254, 255
    (first, second), stds = measure(pixels)
    count = 3 * 50 * 67
    assert first == (255 * count - 1) / (255 * count) and second == 1
    assert stds[0] == pytest.approx((count - 1) ** 0.5 / count / 255, rel=1e-12)
    assert stds[1] == 1  # a constant channel becomes 0


def test_an_npz_may_name_its_classes(npz, tmp_path):
    npz(classes=np.array(["猫", "chien d'été", "c"]))
    assert describe_own("pets", tmp_path, None).classes == ("猫", "chien d'été", "c")


def test_images_that_are_not_square_need_a_size(npz, tmp_path):
    npz((20, 30, 3))
    with pytest.raises(UserError, match="--data pets: its images are not square; give --image_"):
        describe_own("pets", tmp_path, None)
    data = load_dataset("pets", tmp_path, image_size=10)
    assert data.train_images.shape == (30, 3, 10, 10) and describe_own("pets", tmp_path, 10)
    whole = torch.from_numpy(np.load(tmp_path / "pets.npz")["x_train"]).permute(0, 3, 1, 2)
    expected = v2.Compose([v2.Resize(10, antialias=True), v2.CenterCrop(10)])(whole)
    assert (data.train_images.int() - expected.int()).abs().max() <= 1
    crops = load_dataset("pets", tmp_path, image_size=10, augment="resized_crop_flip")
    assert next(iter(crops.train_batches(30, torch.Generator())))[0].shape == (30, 3, 10, 10)


BAD_ARRAYS = [
    ({"x_train": None}, "pets.npz: holds no x_train"),
    ({"x_train": np.zeros((30, 24, 24, 3))}, r"x_train must be uint8 .* not float64"),
    ({"x_train": np.zeros((30, 24, 24, 4), np.uint8)}, r"x_train must be uint8 .*, 1 or 3\)"),
    ({"x_train": np.zeros((30, 0, 24, 3), np.uint8)}, r"x_train must be uint8"),
    ({"x_train": np.zeros(30, np.uint8)}, r"x_train must be uint8 .* not uint8 \(30,\)"),
    ({"x_test": np.zeros((0, 24, 24, 3), np.uint8)}, r"x_test holds no image"),
    ({"x_test": np.zeros((12, 24, 23, 3), np.uint8)}, r"x_test must be uint8 \(images, 24, 24, 3"),
    ({"x_test": np.zeros((12, 24, 24), np.uint8)}, r"x_test must be .*not uint8 \(12, 24, 24, 1"),
    ({"y_train": np.arange(30) % 3 + 1}, r"no image of label 0, and some of 3; number the classes"),
    ({"y_train": np.arange(30) % 3 - 1}, r"must hold labels 0 ... 1, not -1 ... 1"),
    ({"y_train": np.zeros(30, int), "y_test": np.zeros(12, int)}, "has one class; two are needed"),
    ({"y_train": np.array(["a", "b", "c"] * 10)}, "y_train must hold one integer for each"),
    ({"y_train": np.arange(30.0) % 3}, "y_train must hold one integer for each"),
    ({"y_train": np.zeros(29, int)}, "y_train must hold one integer for each of 30"),
    ({"y_train": np.array(2**63, np.uint64)}, "y_train must hold one integer"),
    ({"y_test": np.full(12, 3)}, r"y_test must hold labels 0 ... 2, not 3 ... 3"),
    ({"classes": np.array(["a", "b"])}, "classes must hold the name of each of 3 classes"),
    ({"classes": np.arange(3)}, "classes must hold the name of each"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_ARRAYS)
def test_an_npz_of_the_wrong_form_is_refused(changed, message, npz, tmp_path):
    npz(**changed)
    with pytest.raises(UserError, match=message):
        describe_own("pets", tmp_path, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pets.npz", "give the name without .npz"),
        ("data/pets", "is a path; give the folder that holds the data set as --data_dir"),
        ("..", "is no name of a data set"),
        ("", "is no name of a data set"),
        ("a\nb", "is no name of a data set"),
        ("a\0b", "is no name of a data set"),
        ("x" * 300, "File name too long; give another name"),
        ("cifer10", f"choose one of {', '.join(DATASETS)}, or put cifer10.npz or cifer10/"),
    ],
)
def test_a_name_that_is_none_is_refused(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        describe_own(name, tmp_path, None)


def test_pictures_in_folders_are_those_of_torchvisions_image_folder(folder, tmp_path):
    root = folder(
        {
            "train/cat/wide.jpg": picture(3, (300, 200)),
            "train/dog/tall.webp": picture(4, (90, 200)),
            "train/dog/small.png": picture(5, (20, 10)),
            "test/cat/large.JPG": picture(6, (1500, 1000)),
            "test/dog/in/a folder/of its own.png": picture(7),
        }
    )
    (root / "train" / "cat" / "notes.txt").write_text("left out")
    transform = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32), v2.PILToTensor()])
    data = load_dataset("pets", tmp_path)
    for split in ("train", "test"):
        expected = datasets.ImageFolder(root / split, transform)
        found = getattr(data, f"{split}_images")
        assert getattr(data, f"{split}_labels").tolist() == expected.targets
        for ours, (theirs, _), (path, _) in zip(found, expected, expected.samples, strict=True):
            difference = (ours.int() - theirs.int()).abs().max()
            # JPEGs are decoded at a fraction of their size, which is faster.
            assert difference <= (2 if path.lower().endswith(".jpg") else 0), path
    assert describe_own("pets", tmp_path, None).classes == ("cat", "dog")


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "PA", "CMYK", "I;16"])
def test_pictures_of_every_kind_are_read_in_colour(mode, folder, tmp_path, capsys):
    if mode == "I;16":
        wide = (np.asarray(picture(1, mode="L")).astype(np.uint16)) * 257
        image, expected = Image.fromarray(wide), picture(1, mode="L").convert("RGB")
    else:
        image = picture(1, mode="RGB" if mode == "PA" else mode)
        image = image.convert("PA") if mode == "PA" else image
        expected = image.convert("RGB")
    name = "train/cat/0.jpg" if mode == "CMYK" else "train/cat/0.png"
    image = image.convert("P") if mode == "PA" else image  # PNG has no other palette
    options = {"transparency": bytes(range(100))} if mode in ("P", "PA") else {}
    root = folder()
    (root / "train/cat/0.png").unlink()
    image.save(root / name, **options)
    first = load_dataset("pets", tmp_path).train_images[0].permute(1, 2, 0).int().numpy()
    assert np.abs(first - np.asarray(expected, int)).max() <= (8 if mode == "CMYK" else 0)
    assert capsys.readouterr().err.count("\n") == 1  # the note that they are decoded


def test_a_photo_is_turned_as_its_exif_data_say(folder, tmp_path):
    image, exif = picture(1), Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    root = folder()
    image.save(root / "train/cat/0.png", exif=exif)
    first = load_dataset("pets", tmp_path).train_images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(first, np.rot90(np.asarray(image), -1))


def test_classes_and_files_have_names_in_any_language(folder, tmp_path):
    classes = ["żółw", "chat d'été 🐈", "猫", "a,b"]
    root = folder({"train/猫/寝ている.png": picture(9)}, classes)
    own = describe_own("pets", tmp_path, None)
    assert own.classes == tuple(sorted(classes)) and own.images == (9, 8)
    shutil.move(root / "test/żółw", root / "test/z\u0307o\u0301łw")  # as macOS writes it
    assert describe_own("pets", tmp_path, None).classes == own.classes


def test_hidden_files_and_folders_are_no_images_and_no_classes(folder, tmp_path):
    root = folder({"train/.ipynb_checkpoints/a.png": picture()})
    (root / "train/cat/._0.png").write_bytes(b"what macOS leaves")
    assert describe_own("pets", tmp_path, None).images == (4, 4)


@pytest.mark.parametrize("split", ["val", "test"])
def test_test_images_are_in_test_or_val(split, folder, tmp_path):
    folder(splits=("train", split))
    assert describe_own("pets", tmp_path, None).images == (4, 4)


def test_with_both_test_is_taken_if_it_has_the_classes(folder, tmp_path):
    root = folder({"val/cat/more.png": picture(8)}, splits=("train", "test", "val"))
    assert describe_own("pets", tmp_path, None).images == (4, 4)
    shutil.rmtree(root / "test")
    folder({"val/cat/more.png": picture(8), "test/images/a.png": picture()}, splits=())
    assert describe_own("pets", tmp_path, None).images == (4, 5)


def decoded(monkeypatch):
    """The paths that are decoded from now on."""
    paths, decode = [], images.decode_fitted

    def note(path, side):
        paths.append(path)
        return decode(path, side)

    monkeypatch.setattr("utils.datasets.own.decode_fitted", note)
    return paths


def test_pictures_are_decoded_once_until_they_change(folder, tmp_path, monkeypatch, capsys):
    root, paths = folder(), decoded(monkeypatch)
    first = load_dataset("pets", tmp_path)
    assert len(paths) == 8
    cache = tmp_path / "pets.32x32.cache.npz"
    assert f"note: decoding the 8 images of {root} once; {cache} will keep them" in (
        capsys.readouterr().err
    )
    assert torch.equal(load_dataset("pets", tmp_path).train_images, first.train_images)
    assert (len(paths), capsys.readouterr().err) == (8, "")
    changes = [
        lambda: picture(9).save(root / "train/cat/0.png"),
        lambda: os.utime(root / "test/dog/1.png", (1, 1)),
        lambda: (root / "train/cat/1.png").rename(root / "train/cat/9.png"),
        lambda: (root / "train/dog/1.png").unlink(),
        lambda: cache.write_bytes(b"damaged"),
    ]
    for i, change in enumerate(changes, 2):
        change()
        load_dataset("pets", tmp_path)
        assert len(paths) == 8 * i - max(0, i - 4)
    load_dataset("pets", tmp_path, image_size=16)
    assert cache.is_file() and (tmp_path / "pets.16x16.cache.npz").is_file()


def test_data_in_a_folder_that_cannot_be_written_are_decoded_once_a_run(
    folder, tmp_path, monkeypatch, capsys
):
    folder()
    (tmp_path / "pets.32x32.cache.npz").mkdir()  # in the way
    paths = decoded(monkeypatch)
    describe_own("pets", tmp_path, None)
    load_dataset("pets", tmp_path)
    assert len(paths) == 8
    assert "warning: cannot write" in capsys.readouterr().err


def test_data_that_change_after_they_were_described_are_read_again(npz, tmp_path):
    npz()
    before = describe_own("pets", tmp_path, None)
    npz(x_train=np.ones((31, 24, 24, 3), np.uint8), y_train=np.arange(31) % 3)
    assert describe_own("pets", tmp_path, None) != before
    assert len(load_dataset("pets", tmp_path).train_images) == 31


BAD_FOLDERS = [
    (lambda root: shutil.rmtree(root / "train"), r"pets/train: has no folder of images; put"),
    (lambda root: shutil.rmtree(root / "train/cat"), r"pets/train: has the class dog alone; put"),
    (lambda root: shutil.rmtree(root / "test"), r"pets: has no test/ or val/; put test images"),
    (lambda root: shutil.rmtree(root / "test/cat"), r"pets: only train/ has class cat; give both"),
    (
        lambda root: (root / "test/cat").rename(root / "test/Cat"),
        r"pets: only train/ has class cat and only test/ has class Cat; give both the same",
    ),
    (lambda root: shutil.rmtree(root / "test/cat") or shutil.rmtree(root / "test/dog"), "cat, dog"),
    (
        lambda root: [path.unlink() for path in (root / "test/cat").iterdir()],
        r"test/cat: has no image \(.png, .jpg, .jpeg, .webp\); add some, or delete it in all",
    ),
    (lambda root: (root / "train/cat/0.png").write_bytes(b""), r"cat/0.png: cannot be read as an"),
    (
        lambda root: (root / "train/cat/0.png").write_bytes(
            (root / "train/cat/1.png").read_bytes()[:200]
        ),
        r"cat/0.png: cannot be read as an image \(.*\); replace or delete it",
    ),
    (
        lambda root: (root / "train/cat/link.png").symlink_to("nowhere"),
        r"link.png: No such file or directory; replace or delete it",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS)
def test_folders_that_are_no_data_set_are_refused(spoil, message, folder, tmp_path):
    spoil(folder())
    with pytest.raises(UserError, match=message):
        describe_own("pets", tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_more_data_than_memory_holds_are_refused_unread(kind, npz, folder, tmp_path, monkeypatch):
    npz() if kind == "npz" else folder()
    monkeypatch.setattr("utils.datasets.arrays.available_memory", lambda: 30_000)
    paths = decoded(monkeypatch)
    with pytest.raises(UserError, match=r"pets(.npz)?: its images take 0.0 GB, and memory has"):
        describe_own("pets", tmp_path, None)
    assert not paths


def test_a_description_survives_its_file(npz, tmp_path):
    npz()
    own = describe_own("pets", tmp_path, None)
    assert OwnData.of(own.plain()) == own and own.difference(own) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": ["a"]},
        {"classes": [1, 2, 3]},
        {"channels": 2},
        {"side": 0},
        {"mean": [0.5]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [float("nan")] * 3},
        {"images": ["many", 3]},
        {"more": 1},
    ],
    ids=str,
)
def test_an_impossible_description_is_refused(changed, npz, tmp_path):
    npz()
    plain = describe_own("pets", tmp_path, None).plain()
    with pytest.raises(UserError, match="own_data: describes no data set"):
        OwnData.of(plain | changed)


def test_reading_leaves_nothing_in_memory(npz, tmp_path):
    npz()
    load_dataset("pets", tmp_path)
    first, _ = read_own("pets", tmp_path, None)
    assert set(first) == {"x_train", "y_train", "x_test", "y_test"}
