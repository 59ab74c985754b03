"""Data sets of one's own that are folders of images."""

import os
import shutil

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from utils.datasets import describe_own, load_dataset
from utils.process.errors import UserError


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


def test_pictures_are_decoded_once_until_they_change(folder, tmp_path, decoded, capsys):
    root = folder()
    first = load_dataset("pets", tmp_path)
    assert len(decoded) == 8
    cache = tmp_path / "pets.32x32.cache.npz"
    assert f"note: decoding the 8 images of {root} once; {cache} will keep them" in (
        capsys.readouterr().err
    )
    assert torch.equal(load_dataset("pets", tmp_path).train_images, first.train_images)
    assert (len(decoded), capsys.readouterr().err) == (8, "")
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
        assert len(decoded) == 8 * i - max(0, i - 4)
    load_dataset("pets", tmp_path, image_size=16)
    assert cache.is_file() and (tmp_path / "pets.16x16.cache.npz").is_file()


def test_data_in_a_folder_that_cannot_be_written_are_decoded_once_a_run(
    folder, tmp_path, decoded, capsys
):
    folder()
    (tmp_path / "pets.32x32.cache.npz").mkdir()  # in the way
    describe_own("pets", tmp_path, None)
    load_dataset("pets", tmp_path)
    assert len(decoded) == 8
    assert "warning: cannot write" in capsys.readouterr().err


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
