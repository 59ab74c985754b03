"""Which images are found in folders of one's own, and which folders are refused."""

import errno
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture
from torchvision import datasets

from utils.datasets import load_dataset, read_own
from utils.datasets.folders import images_in, list_images
from utils.process.errors import UserError


def test_classes_and_files_have_names_in_any_language(folder, tmp_path):
    classes = ["żółw", "chat d'été 🐈", "猫", "a,b"]
    root = folder({"train/猫/寝ている.png": picture(9)}, classes)
    own = read_own("pets", tmp_path)[1]
    assert own.classes == tuple(sorted(classes)) and own.images == (9, 8)
    shutil.move(root / "test/żółw", root / "test/z\u0307o\u0301łw")  # as macOS writes it
    assert read_own("pets", tmp_path)[1].classes == own.classes


def test_two_classes_whose_names_are_one_in_unicode_are_refused(folder, tmp_path):
    folder(classes=["caf\u00e9", "cafe\u0301", "dog"])
    message = (
        r"train: has the folders 'cafe\\u0301' and 'caf\\xe9', whose name is café in two forms"
    )
    with pytest.raises(UserError, match=message):
        read_own("pets", tmp_path)


def test_what_is_left_out_is_counted_by_its_reason(folder, tmp_path, capsys):
    hidden = [".ipynb_checkpoints", ".AppleDouble", "@eaDir", "in/@eaDir"]
    root = folder(
        {f"train/cat/{name}/thumb.png": picture() for name in hidden}
        | {"train/.thumbnails/a.png": picture(), "train/dog/of all/2.png": picture()}
    )
    for name in ("train/cat/._0.png", "train/cat/a.GIF", "train/dog/b.gif", "test/dog/README"):
        (root / name).write_bytes(b"")
    picture().save(root / "train/alone.png")
    (root / "labels.csv").write_text("beside the splits")
    assert read_own("pets", tmp_path)[1].images == (5, 4)
    line = (
        f"note: {root}: 11 files or folders left out: 6 hidden (train/.thumbnails), 2"
        " outside class folders (labels.csv), 2 .gif (train/cat/a.GIF), 1 without an ending"
        " (test/dog/README)\n"
    )
    assert line in capsys.readouterr().err
    load_dataset("pets", tmp_path)
    assert "left out" not in capsys.readouterr().err


def test_linked_folders_are_entered_once(folder, tmp_path, capsys):
    root = folder({"elsewhere/a/2.png": picture(2), "elsewhere/b/3.png": picture(3)})
    (root / "train/cat/more").symlink_to(root / "elsewhere")
    (root / "train/linked").symlink_to(root / "elsewhere/a")
    shutil.copytree(root / "train/dog", root / "test/linked")
    found = datasets.ImageFolder(root / "train").targets
    assert load_dataset("pets", tmp_path).train_labels.tolist() == found == [0] * 4 + [1] * 2 + [2]
    capsys.readouterr()
    (root / "train/cat/self").symlink_to(root / "train/cat")
    (root / "train/cat/up").symlink_to(root / "train")
    (root / "elsewhere/b/back").symlink_to(root / "elsewhere")
    assert load_dataset("pets", tmp_path).train_labels.tolist() == found
    err = capsys.readouterr().err
    assert "4 files or folders left out: 3 linked again (" in err
    assert "1 no split (elsewhere)" in err


def test_a_folder_is_read_where_it_is_met_first_from_the_top_down(folder, tmp_path):
    root = folder({"train/cat/x/deep/inner/2.png": picture(2)})
    (root / "train/cat/y").mkdir()
    (root / "train/cat/y/link").symlink_to(root / "train/cat/x/deep/inner")
    (root / "train/cat/loop.png").symlink_to("loop.png")  # leads to itself
    paths = images_in(root / "train/cat", left_out := [])
    assert root / "train/cat/x/deep/inner/2.png" in paths
    assert left_out == [("linked again", str(root / "train/cat/y/link"))]


@pytest.mark.parametrize("denied", ["", "train", "train/cat", "train/cat/in", "test/dog"])
def test_a_folder_that_may_not_be_read_is_named(denied, folder, tmp_path, monkeypatch):
    root = folder({"train/cat/in/2.png": picture()})
    scandir = os.scandir

    def deny(path):
        if Path(path) == root / denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", deny)
    with pytest.raises(UserError, match=rf"{root / denied} cannot be read \(Permission denied\)$"):
        read_own("pets", tmp_path)


FILES = ["a.png", "B.PNG", "b/a.png", "b/z.jpg", "b b/a.png", "b.png", "a-b/c/a.tif", "b/ü.bmp"]


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(["cat", "dog", "Cow", "b b", "b", "ß"]),
        st.lists(st.sampled_from(FILES), min_size=1, unique=True),
        min_size=2,
    )
)
def test_images_are_listed_as_image_folder_lists_them(classes):
    with TemporaryDirectory() as root:
        for name in [f"train/{name}/{file}" for name, files in classes.items() for file in files]:
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        names, splits = list_images(Path(root), test_fraction=0.5)
        expected = datasets.ImageFolder(Path(root, "train"))
    assert names == expected.classes
    assert [(str(path), label) for path, label in splits["train"]] == expected.samples


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "test", "TEST", "testing"])
def test_test_images_are_in_a_folder_of_any_usual_name(name, folder, tmp_path, capsys):
    root = folder(splits=("Train", name))
    assert read_own("pets", tmp_path)[1].images == (4, 4)
    said = f"note: {root}: the test images are those of {name}/\n" in capsys.readouterr().err
    assert said == name.lower().startswith("val")


def test_with_both_test_is_taken_if_it_has_the_classes(folder, tmp_path, capsys):
    root = folder({"valid/cat/more.png": picture(8)}, splits=("train", "test", "valid"))
    assert read_own("pets", tmp_path)[1].images == (4, 4)
    assert "the test images are those of test/; valid/ is left out\n" in capsys.readouterr().err
    shutil.rmtree(root / "test")
    folder({"valid/cat/more.png": picture(8), "test/images/a.png": picture()}, splits=())
    assert read_own("pets", tmp_path)[1].images == (4, 5)
    assert "the test images are those of valid/; test/ is left out\n" in capsys.readouterr().err


@pytest.mark.parametrize("inner", ["", "train"])
def test_class_folders_without_a_split_are_split(inner, folder, tmp_path, decoded, capsys):
    folder(splits=(inner,))
    data = load_dataset("pets", tmp_path, test_fraction=0.5)
    assert sorted(data.train_labels.tolist()) == sorted(data.test_labels.tolist()) == [0, 1]
    assert "pets: 2 of 4 images, 0.5 of each class, are test images" in capsys.readouterr().err
    load_dataset("pets", tmp_path, test_fraction=0.3)
    assert len(decoded) == 4


def test_two_folders_of_one_split_are_refused(folder, tmp_path):
    folder(splits=("train", "val", "valid"))
    with pytest.raises(UserError, match="pets: has both val/ and valid/; keep one of them"):
        read_own("pets", tmp_path)


BAD_FOLDERS = [
    (lambda root: shutil.rmtree(root / "train"), r"pets: has no training images; add some, or"),
    (
        lambda root: shutil.rmtree(root / "train/cat"),
        r"pets/train: has class dog, and two are needed; put",
    ),
    (
        lambda root: shutil.rmtree(root / "test"),
        r"pets: has no test images; add .*test/CLASS/, or give --test",
    ),
    (
        lambda root: (
            [path.rename(root / path.name) for path in (root / "train").iterdir()]
            and [shutil.rmtree(root / split) for split in ("train", "test")]
        ),
        r"pets: has classes cat, dog where train/ and test/ are to be; put the images of each class"
        r" .*/test/CLASS/, or give --test_fraction 0.2, which makes a fifth",
    ),
    (
        lambda root: (
            (root / "train").rename(root / "dog") and (root / "dog/cat").rename(root / "train")
        ),
        r"pets/train: has no class folder, and two are needed; put the images of each",
    ),
    (lambda root: shutil.rmtree(root / "test/cat"), r"pets: only train/ has class cat; give both"),
    (
        lambda root: (root / "test/cat").rename(root / "test/Cat"),
        r"pets: only train/ has class cat and only test/ has class Cat; give both the same",
    ),
    (lambda root: shutil.rmtree(root / "test/cat") or shutil.rmtree(root / "test/dog"), "cat, dog"),
    (
        lambda root: [path.unlink() for path in (root / "test/cat").iterdir()],
        r"test/cat: has no image \(.jpg, .jpeg, .*, .webp\); add some, or delete it in all",
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
        r"link.png cannot be read \(No such file or directory\)",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS)
def test_folders_that_are_no_data_set_are_refused(spoil, message, folder, tmp_path):
    spoil(folder())
    with pytest.raises(UserError, match=message):
        read_own("pets", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]
