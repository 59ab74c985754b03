"""Data sets of one's own that are folders of images."""

import os
import shutil
import struct

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from utils.datasets import load_dataset, read_own
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
    assert read_own("pets", tmp_path)[1].classes == ("cat", "dog")


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


# Two entries of a TIFF header: a width that is text, and an orientation, turned by 90 degrees.
TEXT_WIDTH = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack(
    "<H HHI4s HHI4s I", 2, 0x100, 2, 4, b"32\0\0", 0x112, 3, 1, b"\6\0\0\0", 0
)


@pytest.mark.parametrize(("exif", "turns"), [(b"Exif\0\0no TIFF header", 0), (TEXT_WIDTH, -1)])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_of_broken_metadata_only_the_orientation_is_read(ending, exif, turns, folder, tmp_path):
    root = folder({f"train/dog/2.{ending}": picture(1)})
    picture(1).save(root / f"train/cat/2.{ending}", exif=exif)
    images = load_dataset("pets", tmp_path).train_images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(images[2], np.rot90(images[5], turns))


def test_a_tiff_is_turned_once(folder, tmp_path):
    root = folder()
    picture(1).save(root / "train/cat/2.tif", tiffinfo={0x0112: 6})
    third = load_dataset("pets", tmp_path).train_images[2].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(third, np.rot90(np.asarray(picture(1)), -1))


@pytest.mark.parametrize("ending", datasets.folder.IMG_EXTENSIONS)
def test_every_ending_of_image_folder_is_read(ending, folder, tmp_path):
    folder({f"train/cat/2{ending}": picture(3), f"train/dog/2{ending.upper()}": picture(4)})
    images = load_dataset("pets", tmp_path).train_images.permute(0, 2, 3, 1)
    for image, shade in ((images[2], 3), (images[5], 4)):
        close = 0 if ending in (".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff") else 60
        assert (image.int() - torch.from_numpy(np.array(picture(shade))).int()).abs().max() <= close


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(mode, folder, tmp_path):
    folder({"train/cat/2.tif": picture().convert(mode)})
    with pytest.raises(
        UserError,
        match=r"2.tif: cannot be read as an image \(ValueError: its pixels are .* 32 bits",
    ):
        read_own("pets", tmp_path)


def test_test_images_alone_serve_a_model_of_the_same_classes(folder, tmp_path):
    root = folder()
    known, whole = read_own("pets", tmp_path)[1], load_dataset("pets", tmp_path)
    shutil.rmtree(root / "train")
    data = load_dataset("pets", tmp_path, known=known)
    assert torch.equal(data.test_images, whole.test_images)
    assert (len(data.train_images), data.mean) == (0, whole.mean)
    (root / "test/cat").rename(root / "test/cow")
    with pytest.raises(UserError, match="its classes cow, dog, not classes cat, dog"):
        load_dataset("pets", tmp_path, known=known)


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


def test_data_in_a_folder_that_cannot_be_written_are_read_with_a_warning(folder, tmp_path, capsys):
    folder()
    (tmp_path / "pets.32x32.cache.npz").mkdir()  # in the way
    assert len(load_dataset("pets", tmp_path).train_images) == 4
    assert "warning: cannot write" in capsys.readouterr().err
