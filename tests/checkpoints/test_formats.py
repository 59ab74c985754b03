"""Formats of pruned networks: each is read by the program that it is made for."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from runs import DIGITS, RUN, assert_refused, read_csv
from torch import nn

from utils.checkpoints import onnx_file
from utils.checkpoints.formats import FORMATS, write_pruned
from utils.checkpoints.model_file import new_model, pruned_metadata
from utils.checkpoints.onnx_file import InputImages
from utils.datasets import load_dataset
from utils.process.errors import RunError
from utils.prune import load_pruned
from utils.settings.config import Config

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

SAVED = ("--save_pruned", 0.9, "--pruned_format", *FORMATS)
IMAGES = InputImages(3, 6, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
GREY = InputImages(1, 8, mean=(0.1,), std=(0.2,))


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 5))


def write_onnx(path, network, metadata):
    write_pruned(path, "onnx", network, IMAGES, metadata)


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
        load_pruned(paths["npz"]),
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
    columns = ("npz_bytes", "state_dict_bytes", "onnx_bytes")
    for column, path in zip(columns, paths.values(), strict=True):
        assert int(row[column]) == path.stat().st_size
    assert re.search(r"npz \d+ kB, .* state_dict \d+ kB, .* onnx \d+ kB, ", out)
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


def test_an_onnx_file_takes_any_batch_normalises_it_and_states_how_it_was_made(network, tmp_path):
    write_onnx(tmp_path / "a.onnx", network.train(), {"pruning": {"sparsity": 0.5}})
    assert all(p.requires_grad for p in network.parameters())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGES.mean, IMAGES.std))
    for size in (1, 2, 7):
        images = torch.rand(size, 3, 6, 6)
        expected = network((images - mean) / std).detach().numpy()
        assert np.abs(logits_of(tmp_path / "a.onnx", images.numpy()) - expected).max() < 1e-4
    stated = {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(stated["pruning"]) == {"sparsity": 0.5}
    assert stated["images"].startswith("float32 (batch, 3, 6, 6) in 0 ... 1; ")


def test_an_onnx_file_holds_no_paths_of_the_machine(network, tmp_path):
    write_onnx(tmp_path / "a.onnx", network, {})
    assert b".py" not in (tmp_path / "a.onnx").read_bytes()


def test_an_onnx_file_that_computes_something_else_is_not_kept(network, tmp_path, monkeypatch):
    export = onnx_file._exported
    other = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    monkeypatch.setattr(onnx_file, "_exported", lambda network, images: export(other, images))
    with pytest.raises(ValueError, match=r"the file's logits differ by \d"):
        write_onnx(tmp_path / "a.onnx", network, {})
    assert list(tmp_path.iterdir()) == []


def own_network(name):
    """A network of tests/saved_networks.py, and the metadata of its files."""
    config = Config(data="digits", arch=f"saved_networks:{name}")
    return new_model(config), pruned_metadata(config.as_dict(), {"sparsity": 0.5})


@pytest.mark.parametrize("name", FORMATS)
def test_activations_that_hooks_keep_are_right_in_each_file_or_it_is_not_kept(name, tmp_path):
    """In a deep copy the hooks still fill the activations of the original."""
    model, metadata = own_network("KeptByHooks")
    path = tmp_path / "a"
    if name == "onnx":
        with pytest.raises(ValueError, match=r"logits of shape \(1, 10\), the file \(3, 10\)"):
            write_pruned(path, name, model, GREY, metadata)
        assert list(tmp_path.iterdir()) == []
    else:
        write_pruned(path, name, model, GREY, metadata)


@pytest.mark.parametrize("name", ["npz", "state_dict"])
def test_a_file_that_gives_another_network_is_not_kept(name, tmp_path):
    model, metadata = own_network("PlainLayerNorm")
    path = tmp_path / "a"
    path.write_text("an earlier file")
    model[3] = nn.Sigmoid()  # as no network of this code is
    with pytest.raises(ValueError, match=r"differ by 0\.\d+ from those of the network"):
        write_pruned(path, name, model, GREY, metadata)
    assert path.read_text() == "an earlier file" and len(list(tmp_path.iterdir())) == 1


def test_a_network_that_takes_no_single_image_has_no_onnx_file(tmp_path):
    """It returns no (batch, classes) for one image, but is right for any batch of the test."""
    model, metadata = own_network("SqueezesOne")
    write_pruned(tmp_path / "a.npz", "npz", model, GREY, metadata)
    with pytest.raises(ValueError, match=r"shape \(10,\), .*; both must be \(batch, 10\)"):
        write_pruned(tmp_path / "a.onnx", "onnx", model, GREY, metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_types_that_numpy_lacks_come_back_in_the_network(tmp_path):
    model, metadata = own_network("HalfBuffer")
    write_pruned(tmp_path / "a.npz", "npz", model, GREY, metadata)
    state = load_pruned(tmp_path / "a.npz", arch="saved_networks:HalfBuffer").state_dict()
    assert all(values.dtype == state[n].dtype for n, values in model.state_dict().items())
    assert all(torch.equal(values, state[n]) for n, values in model.state_dict().items())


def test_a_network_whose_outputs_are_no_numbers_is_saved(tmp_path):
    model, metadata = own_network("PlainLayerNorm")
    nn.init.constant_(model[4].bias, torch.nan)
    write_pruned(tmp_path / "a.npz", "npz", model, GREY, metadata)


def test_a_network_that_cannot_be_exported_is_named_in_one_line(quick, tmp_path, caplog):
    torch.save(own_network("BranchOnImages")[0].state_dict(), tmp_path / "a.pt")
    flags = ("--data", "digits", "--arch", "saved_networks:BranchOnImages", "--ratios", 0.5)
    flags += ("--model_path", tmp_path / "a.pt", "--output_dir", tmp_path)
    saved = ("--save_pruned", 0.5, "--pruned_format", "onnx", "npz")
    status, out, err = quick("test_prune.py", *flags, *saved)
    warning, error = err.splitlines()
    assert warning.startswith(
        "warning: --pruned_format onnx: PyTorch cannot export this network (Unsupported: "
    )
    assert warning.endswith("; choose another format")
    assert error == "error: --save_pruned: some files could not be written; the warnings say why"
    assert status == 1 and "forward" not in out
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not list(tmp_path.rglob("*.onnx"))
    (row,) = read_csv(next(tmp_path.rglob("SFW_prune_test/*.csv")))
    assert row["onnx_bytes"] == "" and int(row["npz_bytes"]) > 0


def test_a_disk_that_is_full_is_worth_another_try(quick, trained, monkeypatch):
    def fail(path, *others):
        raise RunError(f"cannot write {path.suffix}")

    monkeypatch.setattr("test_prune.write_pruned", fail)
    flags = (*DIGITS, "--ratios", 0.9, "--save_pruned", 0.9, "--output_dir", trained)
    status, _, err = quick("test_prune.py", *flags)
    again = "warning: cannot write .npz; give the same command again once that is solved\n"
    assert status == 1 and err.startswith(again)


def test_load_pruned_and_the_state_dict_agree_in_one_memory_format(tmp_path):
    config = Config(data="digits", arch="own_networks:convolutions")
    model, images = new_model(config).eval(), torch.randn(2, 1, 8, 8)
    model.to(memory_format=torch.channels_last)
    for name in ("npz", "state_dict"):
        write_pruned(tmp_path / name, name, model, GREY, pruned_metadata(config.as_dict(), {}))
    plain = new_model(config).eval()
    plain.load_state_dict(torch.load(tmp_path / "state_dict", weights_only=True))
    plain.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(load_pruned(tmp_path / "npz", config.arch)(images), plain(images))


def test_a_format_without_ratios_is_refused(quick, trained):
    flags = (*DIGITS, "--pruned_format", "onnx", "--output_dir", trained)
    assert_refused(quick("test_prune.py", *flags), "--pruned_format: nothing is saved without")


def test_a_format_whose_requirements_are_missing_says_what_to_install(quick, trained, monkeypatch):
    monkeypatch.setattr("utils.process.errors.find_spec", lambda name: None)
    result = quick("test_prune.py", *DIGITS, *SAVED, "--output_dir", trained)
    message = "--pruned_format onnx: needs onnx, onnxscript, onnxruntime; pip install -r"
    assert_refused(result, f"{message} requirements-optional.txt")


class Counting(nn.Linear):
    def forward(self, images):
        return super().forward(images.reshape(len(images), -1))  # len is a number when traced


def test_a_network_that_counts_its_images_takes_any_number_of_them(tmp_path):
    write_onnx(tmp_path / "a.onnx", Counting(108, 5), {})
    assert logits_of(tmp_path / "a.onnx", np.zeros((7, 3, 6, 6))).shape == (7, 5)
