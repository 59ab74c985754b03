"""The three scripts on data of one's own, as users run them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SCRIPTS, assert_refused, read_csv

from utils.checkpoints.model_file import read_contents
from utils.datasets.builtin import read_digits
from utils.prune import load_pruned

RUN = "data=my pets_model=Mlp_optimizer=SFW_train_batchsize=16_epoch_num=2"


@pytest.fixture
def flags(tmp_path):
    write_npz(tmp_path / "data")
    return [
        *("--data", "my pets", "--arch", "Mlp", "--epoch_num", 2, "--train_batchsize", 16),
        *("--data_dir", tmp_path / "data", "--output_dir", tmp_path),
    ]


def write_npz(folder, count=60, seed=0, **changed):
    """Three classes of bright, grey and dark images."""
    rng = np.random.default_rng(seed)
    arrays = {"classes": np.array(["dark", "grau", "明るい"])}
    for split, n in (("train", count), ("test", 30)):
        y = np.arange(n) % 3
        x = rng.integers(0, 86, (n, 9, 9, 3), dtype=np.uint8)
        arrays |= {f"x_{split}": x + (85 * y).astype(np.uint8)[:, None, None, None]}
        arrays |= {f"y_{split}": y}
    folder.mkdir(exist_ok=True)
    arrays = {name: values for name, values in (arrays | changed).items() if values is not None}
    np.savez(folder / "my pets.npz", **arrays)


def test_three_commands_take_an_npz(quick, flags, tmp_path):
    for script in SCRIPTS:
        status, _, err = quick(script, *flags)
        assert (status, err.count("error")) == (0, 0), err
    contents = torch.load(tmp_path / f"saved_models/{RUN}.pt", weights_only=True)
    own = contents["config"]["own_data"]
    assert own["classes"] == ["dark", "grau", "明るい"]
    arrays = np.load(tmp_path / "data" / "my pets.npz")
    assert own["mean"] == pytest.approx(arrays["x_train"].mean((0, 1, 2)) / 255)
    assert contents["state_dict"]["linear_layer_2.weight"].shape == (3, 128)
    assert len(read_csv(tmp_path / f"saved_logs/SFW_prune_test/{RUN}.csv")) == 19


def test_three_commands_take_folders(quick, flags, tmp_path):
    (tmp_path / "data" / "my pets.npz").unlink()
    for split in ("train", "valid", "test"):  # as CINIC-10 has them
        for shade, name in ((40, "暗い"), (200, "clair")):
            folder = tmp_path / "data" / "my pets" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (50, 40), (shade, shade + i, 7)).save(folder / f"é{i}.jpg")
    for script in SCRIPTS:
        status, _, err = quick(script, *flags, "--image_size", 12)
        assert status == 0 and "my pets: the test images are those of test/; valid/ is" in err
    (path,) = tmp_path.rglob("*image_size=12.pt")
    contents = torch.load(path, weights_only=True)
    assert contents["config"]["own_data"]["classes"] == ["clair", "暗い"]
    assert contents["state_dict"]["linear_layer_0.weight"].shape == (128, 3 * 12 * 12)


def test_three_commands_take_a_file_of_medmnist(quick, flags, tmp_path):
    path = tmp_path / "data" / "my pets.npz"
    own, names = dict(np.load(path)), [("train", "train"), ("test", "test"), ("val", "test")]
    images = {f"{name}_images": own[f"x_{of}"] for name, of in names}
    labels = {f"{name}_labels": own[f"y_{of}"][:, None] for name, of in names}
    np.savez_compressed(path, **images, **labels)
    for script in SCRIPTS:
        assert quick(script, *flags)[0] == 0


def test_three_commands_take_class_folders_without_a_split(quick, flags, tmp_path):
    (tmp_path / "data" / "my pets.npz").unlink()
    rng = np.random.default_rng(0)
    for shade, name in ((40, "暗い"), (200, "clair")):
        folder = tmp_path / "data" / "my pets" / name
        folder.mkdir(parents=True)
        for i in range(10):
            image = rng.integers(shade - 40, shade + 40, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{i}.png")
    assert_refused(quick("train_prune.py", *flags), "or give --test_fraction 0.2, which makes a")
    for script in SCRIPTS:
        status, _, err = quick(script, *flags, "--image_size", 9, "--test_fraction", 0.2)
        assert status == 0 and "my pets: 4 of 20 images" in err
    (path,) = tmp_path.rglob("*_image_size=9_test_fraction=0.2.pt")
    assert torch.load(path, weights_only=True)["config"]["own_data"]["images"] == [16, 4]
    model = ("--model_path", path, "--output_dir", tmp_path, "--data_dir", tmp_path / "data")
    status, _, err = quick("test_prune.py", *model, "--ratios", 0, 0.5)
    assert status == 0 and "my pets: 4 of 20 images" in err and "warning" not in err
    assert_refused(quick("train_prune.py", "--test_fraction", 1), "--test_fraction 1: must be")


def test_a_model_file_is_enough_where_the_data_are_not(quick, flags, tmp_path):
    assert quick("train_prune.py", *flags)[0] == 0
    assert quick("test_prune.py", *flags, "--save_pruned", 0.5)[0] == 0
    shutil.rmtree(tmp_path / "data")
    (dense,), (pruned,) = tmp_path.rglob("*.pt"), tmp_path.rglob("saved_models/*.npz")
    assert load_pruned(pruned).linear_layer_2.out_features == 3
    assert "明るい" in read_contents(pruned, "")["config"]["own_data"]["classes"]
    for path in (dense, pruned):
        model = ("--model_path", path, "--output_dir", tmp_path)
        status, _, err = quick("test_weight_distribution.py", *model)
        assert status == 0, err
        message = "--data my pets: choose one of cifar10"
        assert_refused(quick("test_prune.py", *model, "--data_dir", tmp_path / "no"), message)
    table = next(tmp_path.rglob("SFW_prune_test/*.csv"))
    assert quick("test_prune.py", "--compare", table, "--output_dir", tmp_path)[0] == 0


def test_a_stopped_run_goes_on_as_if_it_had_not_been(quick, flags, tmp_path, stop_after):
    assert quick("train_prune.py", *flags)[0] == 0
    (path,) = tmp_path.rglob("*.pt")
    whole = torch.load(path, weights_only=True)["state_dict"]
    path.unlink()
    stop_after(1)
    assert quick("train_prune.py", *flags)[0] == 143
    status, out, _ = quick("train_prune.py", *flags)
    assert status == 0 and "Going on after epoch 1" in out
    again = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(values, again[name]) for name, values in whole.items())


def test_a_run_does_not_go_on_with_other_data_of_the_same_name(quick, flags, tmp_path, stop_after):
    stop_after(1)
    assert quick("train_prune.py", *flags)[0] == 143
    write_npz(tmp_path / "data", count=61)
    message = "is of other data: it has 60 training and 30 test images, not 61 training and 30"
    assert_refused(quick("train_prune.py", *flags), message)
    write_npz(tmp_path / "data", seed=1)
    assert_refused(quick("train_prune.py", *flags), "its pixels or labels are others; start over")


def test_a_finished_model_is_not_taken_for_one_of_other_data(quick, flags, tmp_path):
    assert quick("train_prune.py", *flags)[0] == 0
    before = next(tmp_path.rglob("*.pt")).read_bytes()
    write_npz(tmp_path / "data", classes=np.array(["a", "b", "c"]))
    result = quick("train_prune.py", *flags)
    message = "is of other data: its classes dark, grau, 明るい, not classes a, b, c; train"
    assert_refused(result, message)
    assert_refused(quick("test_prune.py", *flags), "was trained with other data: its classes dark")
    assert next(tmp_path.rglob("*.pt")).read_bytes() == before
    assert quick("train_prune.py", *flags, "--resume", "never")[0] == 0


def test_a_model_is_tested_on_other_images_of_its_classes_with_a_warning(quick, flags, tmp_path):
    assert quick("train_prune.py", *flags)[0] == 0
    (path,) = tmp_path.rglob("*.pt")
    model = ("--model_path", path, "--data_dir", tmp_path / "data", "--output_dir", tmp_path)
    write_npz(tmp_path / "data", seed=1)
    status, _, err = quick("test_prune.py", *model, "--ratios", 0)
    assert status == 0
    assert "has other data than the model was trained on: its pixels or labels are others\n" in err
    write_npz(tmp_path / "data", classes=np.array(["a", "b", "c"]))
    assert_refused(quick("test_prune.py", *model), "has other data than the model was trained on")


def test_a_built_in_data_set_of_other_test_images_is_told(quick, trained, tmp_path):
    digits = read_digits("digits", tmp_path)
    digits["x_test"] = digits["x_test"][::-1]
    np.savez(tmp_path / "digits.npz", **digits)
    (path,) = trained.rglob("*.pt")
    model = ("--model_path", path, "--ratios", 0, "--output_dir", tmp_path)
    assert "test images" not in quick("test_prune.py", *model)[2]
    quick("test_prune.py", *model, "--save_pruned", 0.5)
    (saved,) = tmp_path.glob("saved_models/*.npz")
    pruned = ("--model_path", saved, *model[2:], "--data_dir", tmp_path)
    assert "has other test images" in quick("test_prune.py", *pruned)[2]
    status, _, err = quick("test_prune.py", *model, "--data_dir", tmp_path)
    warning = f"warning: --data_dir {tmp_path}: has other test images than when the model was"
    assert status == 0 and err.startswith(warning)


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_a_model_is_tested_on_test_images_alone(form, quick, flags, tmp_path):
    assert quick("train_prune.py", *flags)[0] == 0
    (path,) = tmp_path.rglob("*.pt")
    model = ("--model_path", path, "--output_dir", tmp_path, "--data_dir", tmp_path / "data")
    assert quick("test_prune.py", *model, "--ratios", 0)[0] == 0
    (table,) = tmp_path.rglob("SFW_prune_test/*.csv")
    expected, alone = read_csv(table), dict(np.load(tmp_path / "data/my pets.npz"))
    write_npz(tmp_path / "data", x_train=None, y_train=None)
    if form == "folder":
        (tmp_path / "data/my pets.npz").unlink()
        for i, (image, label) in enumerate(zip(alone["x_test"], alone["y_test"], strict=True)):
            folder = tmp_path / "data/my pets/test" / alone["classes"][label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    status, _, err = quick("test_prune.py", *model, "--ratios", 0)
    assert status == 0 and "it has 0 training and 30 test images, not 60 training and 30" in err
    assert read_csv(table) == expected
    status, _, err = quick("test_prune.py", *model, "--repair", 8)
    message = (
        "error: --repair 8: there are 0 training images; leave it out, or add some to the data"
    )
    assert status == 2 and message in err
    place = "my pets" if form == "folder" else "my pets.npz"
    message = f"{place}: has no training images; add some, or test a model that was trained on"
    assert_refused(quick("train_prune.py", *flags, "--seed", 1), message)


def test_a_bare_state_dict_of_own_data_is_tested(quick, flags, tmp_path):
    assert quick("train_prune.py", *flags)[0] == 0
    (path,) = tmp_path.rglob("*.pt")
    torch.save(torch.load(path, weights_only=True)["state_dict"], tmp_path / "bare.pt")
    model = [*flags[:4], *flags[8:], "--model_path", tmp_path / "bare.pt"]  # no training settings
    status, _, err = quick("test_prune.py", *model, "--save_pruned", 0.5, "--ratios", 0.5)
    assert status == 0, err
    (pruned,) = tmp_path.rglob("saved_models/*.npz")
    assert quick("test_weight_distribution.py", "--model_path", pruned, *flags[-2:])[0] == 0


def test_a_size_that_the_network_does_not_take_is_refused_with_the_way_out(quick, flags):
    result = quick("train_prune.py", *flags, "--arch", "VGG16")
    assert_refused(result, "--image_size 9: VGG16 takes images of 32; give that, or another --arch")


def test_own_data_may_be_turned_to_grey_and_augmented(quick, flags, tmp_path):
    own = (*flags, "--color_channel", 1, "--augment", "resized_crop_flip")
    for script in SCRIPTS:
        assert quick(script, *own)[0] == 0
    (path,) = tmp_path.rglob("*_color_channel=1_augment=resized_crop_flip.pt")
    weight = torch.load(path, weights_only=True)["state_dict"]["linear_layer_0.weight"]
    assert weight.shape == (128, 81)


def test_the_data_sets_own_settings_written_out_change_no_name(quick, flags, tmp_path):
    own = (*flags, "--color_channel", 3, "--augment", "none", "--image_size", 9)
    assert quick("train_prune.py", *own)[0] == 0
    assert next(tmp_path.rglob("*.pt")).stem == RUN


@pytest.mark.parametrize(
    "changed",
    [
        {"own_data": {"classes": ["a", "b"]}},
        {"own_data": 3},
        {"data": "../../elsewhere"},
        {"data": "digits2", "own_data": None},
    ],
    ids=str,
)
def test_a_model_file_with_an_impossible_data_set_is_refused(changed, quick, flags, tmp_path):
    assert quick("train_prune.py", *flags)[0] == 0
    (path,) = tmp_path.rglob("*.pt")
    contents = torch.load(path, weights_only=True)
    contents["config"] |= changed
    torch.save(contents, path)
    model = ("--model_path", path, "--output_dir", tmp_path / "new")
    assert_refused(quick("test_weight_distribution.py", *model), f"{path}: holds invalid settings")
    assert not (tmp_path / "new").exists()
