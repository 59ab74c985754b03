"""Formats of pruned networks: each is read by the program that it is made for."""

import json
import re

import numpy as np
import pytest
import torch
from runs import DIGITS, RUN, assert_refused, read_csv
from torch import nn

from utils.datasets import load_dataset
from utils.outputs import onnx_file
from utils.outputs.formats import FORMATS
from utils.outputs.onnx_file import InputImages, write_onnx
from utils.process.errors import RunError
from utils.prune import load_pruned

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

SAVED = ("--save_pruned", 0.9, "--pruned_format", *FORMATS)
IMAGES = InputImages(3, 6, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 5))


def logits_of(path, images):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"images": images.astype(np.float32)})[0]


def test_all_formats_hold_the_network_that_was_tested(quick, trained):
    status, out, err = quick("test_prune.py", *DIGITS, *SAVED, "--output_dir", trained)
    assert status == 0, err
    paths = {
        name: trained / "saved_models" / f"{RUN}_sparsity=0.9{FORMATS[name].suffix}"
        for name in FORMATS
    }
    model, state = (
        load_pruned(paths["safetensors"]),
        torch.load(paths["state_dict"], weights_only=True),
    )
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(values, state[n]) for n, values in model.state_dict().items())
    dataset = load_dataset("digits", trained)
    logits = logits_of(paths["onnx"], dataset.test_images.numpy() / 255)
    with torch.no_grad():
        (batch,) = dataset.test_batches(len(dataset.test_images))
        assert np.abs(logits - model(batch[0]).numpy()).max() < 1e-4
    (row,) = [r for r in read_csv(next(trained.rglob(f"{RUN}.csv"))) if r["sparsity"] == "0.9"]
    right = (torch.from_numpy(logits).argmax(1) == dataset.test_labels).float().mean()
    assert 100 * right.item() == pytest.approx(float(row["accuracy"]), abs=1e-3)
    columns = ("file_bytes", "state_dict_bytes", "onnx_bytes")
    for column, path in zip(columns, paths.values(), strict=True):
        assert int(row[column]) == path.stat().st_size
    assert re.search(r"safetensors \d+ kB, .* state_dict \d+ kB, .* onnx \d+ kB, ", out)
    log = next(trained.rglob(f"SFW_prune_test/{RUN}.log")).read_text()
    assert re.findall(r"^Pruned_Model 0.9 \d+ bytes (.*)$", log, re.M) == [
        path.name for path in paths.values()
    ]


def test_a_state_dict_is_tested_like_any_other(quick, trained):
    formats = ("--save_pruned", 0.9, "--pruned_format", "state_dict")
    quick("test_prune.py", *DIGITS, *formats, "--output_dir", trained)
    path = trained / "saved_models" / f"{RUN}_sparsity=0.9.pt"
    flags = ("--data", "digits", "--arch", "Mlp", "--model_path", path, "--output_dir", trained)
    status, out, err = quick("test_prune.py", *flags)
    assert status == 0 and "Training settings unknown" in out, err


def test_an_onnx_file_takes_any_batch_and_normalises_it(network, tmp_path):
    write_onnx(tmp_path / "a.onnx", network.train(), IMAGES, {"pruning": {"sparsity": 0.5}})
    assert network.training and all(p.requires_grad for p in network.parameters())
    network.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGES.mean, IMAGES.std))
    for size in (1, 2, 7):
        images = torch.rand(size, 3, 6, 6)
        expected = network((images - mean) / std).detach().numpy()
        assert np.abs(logits_of(tmp_path / "a.onnx", images.numpy()) - expected).max() < 1e-4


def test_an_onnx_file_states_how_it_was_made(network, tmp_path):
    write_onnx(tmp_path / "a.onnx", network, IMAGES, {"pruning": {"sparsity": 0.5}})
    stated = {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(stated["pruning"]) == {"sparsity": 0.5}
    assert stated["images"].startswith("float32 (batch, 3, 6, 6) in 0 ... 1; ")


def test_an_onnx_file_that_computes_something_else_is_not_kept(network, tmp_path, monkeypatch):
    export = onnx_file._exported
    other = onnx_file.NormalisedInput(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), IMAGES)
    monkeypatch.setattr(onnx_file, "_exported", lambda network, images: export(other, images))
    with pytest.raises(RunError, match=r"onnxruntime's logits differ by \d"):
        write_onnx(tmp_path / "a.onnx", network, IMAGES, {})
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Module):
    def forward(self, images):
        return torch.from_numpy(images.detach().numpy()).flatten(1) if images.sum() > 0 else images


def test_a_network_that_cannot_be_exported_is_named_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"^--pruned_format onnx: PyTorch cannot export this"):
        write_onnx(tmp_path / "a.onnx", Untraceable(), IMAGES, {})


def test_a_format_that_fails_leaves_the_others(quick, trained, monkeypatch):
    def fail(*arguments):
        raise RunError("cannot")

    monkeypatch.setattr("utils.outputs.onnx_file._check", fail)
    status, _, err = quick("test_prune.py", *DIGITS, *SAVED, "--output_dir", trained)
    assert status == 1 and err.startswith("warning: cannot\nerror: --save_pruned: some files")
    (row,) = [r for r in read_csv(next(trained.rglob(f"{RUN}.csv"))) if r["sparsity"] == "0.9"]
    assert row["onnx_bytes"] == "" and int(row["state_dict_bytes"]) > int(row["file_bytes"])


def test_a_format_without_ratios_is_refused(quick, trained):
    flags = (*DIGITS, "--pruned_format", "onnx", "--output_dir", trained)
    assert_refused(quick("test_prune.py", *flags), "--pruned_format: nothing is saved without")


def test_a_format_whose_requirements_are_missing_says_what_to_install(quick, trained, monkeypatch):
    monkeypatch.setattr("utils.process.requirements.find_spec", lambda name: None)
    result = quick("test_prune.py", *DIGITS, *SAVED, "--output_dir", trained)
    message = "--pruned_format onnx: needs onnx, onnxscript, onnxruntime; pip install -r"
    assert_refused(result, f"{message} requirements-optional.txt")


class Counting(nn.Linear):
    def forward(self, images):
        return super().forward(images.reshape(len(images), -1))  # len is a number when traced


def test_a_network_that_counts_its_images_takes_any_number_of_them(tmp_path):
    write_onnx(tmp_path / "a.onnx", Counting(108, 5), IMAGES, {})
    assert logits_of(tmp_path / "a.onnx", np.zeros((7, 3, 6, 6))).shape == (7, 5)
