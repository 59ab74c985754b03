"""What the settings of long runs are tuned on."""

import numpy as np
import pytest

from experiments import tuning
from models import build_model
from utils.datasets import load_dataset


@pytest.mark.parametrize(("name", "shape"), [("cifar10", (32, 32, 3)), ("mnist", (28, 28))])
def test_the_last_training_images_are_held_out_and_no_test_image_is_used(
    tmp_path, monkeypatch, capsys, name, shape
):
    monkeypatch.setattr(tuning, "HELD_OUT_IMAGES", 20)
    draw = np.random.default_rng(0).integers
    arrays = {}
    for split, count in (("train", 64), ("test", 16)):
        arrays[f"x_{split}"] = draw(256, size=(count, *shape), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(tmp_path / f"{name}.npz", **arrays)
    assert tuning.main(["--data", name, "--data_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / f'{name}_held_out.npz'}\n"
    data = load_dataset(f"{name}_held_out", tmp_path)
    expected = arrays["x_train"].reshape(64, *shape[:2], -1).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train_images, expected[:44])
    assert np.array_equal(data.test_images, expected[44:])
    assert data.train_labels.tolist() + data.test_labels.tolist() == arrays["y_train"].tolist()


def test_damaged_data_are_told_in_one_line(tmp_path, capsys):
    (tmp_path / "cifar10.npz").write_bytes(b"no arrays")
    assert tuning.main(["--data_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_narrow_network_is_a_quarter_as_wide():
    narrow = dict(tuning.narrow_resnet18(10, 3, 32).named_parameters())
    for name, p in build_model("ResNet18", 10, 3, 32).named_parameters():
        assert narrow[name].shape[0] == (10 if "classifier" in name else p.shape[0] // 4)
