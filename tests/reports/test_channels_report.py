"""test_prune.py --granularity channels: what it prints, writes and saves."""

import re

import numpy as np
import pytest
import torch
from networks import SharedTensor
from runs import DIGITS, RUN, assert_refused, read_csv
from torch import nn

import test_prune
from models import build_model
from utils.checkpoints.model_file import model_contents, read_contents, write_contents
from utils.datasets import DATASETS, load_dataset
from utils.prune import load_pruned
from utils.prune.channels.measure import measured, training_images
from utils.prune.channels.slicing import ChannelRanking
from utils.settings.config import Config

pytest.importorskip("torch_pruning")

TIMED = "utils.prune.channels.measure.time_in_turns"  # dense and sliced network
SAVE, SPEED = test_prune.save, (1.0, 1.0)
NAME = f"{RUN}_granularity=channels"
CHANNELS = ("--granularity", "channels", "--ratios", 0, 0.5)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr("utils.prune.channels.measure.SECONDS", 0)


def test_sliced_networks_are_measured_beside_the_dense_one(quick, trained):
    status, out, err = quick("test_prune.py", *DIGITS, *CHANNELS, "--output_dir", trained)
    assert status == 0, err
    logs, name = trained / "saved_logs", f"{NAME}_ratios=0,0.5"
    dense, sliced = read_csv(logs / "SFW_prune_test" / f"{name}.csv")
    assert list(dense) == [
        *("ratio", "removed", "channels", "parameters", "bytes", "multiply_adds"),
        *("milliseconds_1", "dense_milliseconds_1", "milliseconds_128", "dense_milliseconds_128"),
        *("accuracy", "accuracy_not_finite"),
    ]
    assert [float(dense[name]) for name in list(dense)[:6]] == [0, 0, 266, 26122, 104488, 25856]
    assert float(sliced["removed"]) >= 0.5 and int(sliced["multiply_adds"]) <= 25856 / 2
    assert all(float(sliced[column]) > 0 for column in list(sliced) if "milliseconds" in column)
    layers = read_csv(logs / "layer_widths" / f"{name}.csv")
    of_sliced = [int(row["channels"]) for row in layers if row["ratio"] == "0.5"]
    assert sum(of_sliced) == int(sliced["channels"]) and of_sliced[-1] == 10
    log = (logs / "SFW_prune_test" / f"{name}.log").read_text()
    assert re.search(r"^Sliced 0.5 Removed: 0.5\d+ Channels: \d+ Parameters: ", log, re.M)
    assert f"Prune Ratio 0.5 Test Accuracy {float(sliced['accuracy']):.2f}" in log
    assert (logs / "SFW_prune_test" / f"{name}.png").is_file()
    assert re.search(r"^ +50% +50\.\d% ", out, re.M)


def test_times_of_both_networks_are_told_apart(quick, trained, monkeypatch):
    drawn = []
    speed = [(0.004, 0.001), (0.008, 0.006)] * 2  # of batches of 1 and 128, at both ratios
    monkeypatch.setattr(TIMED, lambda *_: speed.pop(0))
    monkeypatch.setattr("utils.reports.report.plot_slicing", lambda *a: drawn.append(a))
    status, out, _ = quick("test_prune.py", *DIGITS, *CHANNELS, "--output_dir", trained)
    _, row = read_csv(next(trained.rglob("SFW_prune_test/*.csv")))
    assert status == 0 and "1.00 (4.00)" in out and "6.00 (8.00)" in out
    times = ("milliseconds_1", "dense_milliseconds_1", "milliseconds_128", "dense_milliseconds_128")
    assert [float(row[name]) for name in times] == [1, 4, 6, 8]
    ((_, curves, measures, _),) = drawn
    ((key, (accuracies,)),) = curves.items()
    assert key == ("", "as pruned") and list(accuracies) == [0.0, float(row["removed"])]
    assert [measures[1][name] for name in times] == [1, 4, 6, 8]


def test_the_dense_network_is_timed_first(monkeypatch):
    def in_turns(steps, seconds, device):
        return [step().item() / 1000 for step in steps]

    monkeypatch.setattr(TIMED, in_turns)
    dense, sliced = (nn.LazyLinear(1, bias=False) for _ in range(2))
    images = torch.ones(1, 1)
    for layer, value in ((dense, 4.0), (sliced, 1.0)):
        layer(images)
        nn.init.constant_(layer.weight, value)
    columns = measured(dense, sliced, images, "fp32")
    assert (columns["dense_milliseconds_1"], columns["milliseconds_1"]) == (4, 1)


def test_score_and_rounding_are_those_of_the_flags(quick, trained, monkeypatch):
    asked = []

    class Recorded(ChannelRanking):
        def __init__(self, model, images, *settings):
            asked.append(settings)
            super().__init__(model, images, *settings)

    monkeypatch.setattr("test_prune.ChannelRanking", Recorded)
    own = ("--round_to", 8, "--channel_score", "l2", "--allocation", "uniform")
    status, _, err = quick("test_prune.py", *DIGITS, *CHANNELS, *own, "--output_dir", trained)
    assert status == 0, err
    assert asked == [("uniform", "l2", 8)]


def test_all_formats_hold_the_sliced_network(quick, trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    formats = ("--save_pruned", 0.5, "--pruned_format", "npz", "state_dict", "onnx")
    flags = (*DIGITS, *CHANNELS, *formats, "--output_dir", trained)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    path = trained / "saved_models" / f"{NAME}_sparsity=0.5"
    model = load_pruned(f"{path}.npz")
    state = torch.load(f"{path}.pt", weights_only=True)
    assert all(torch.equal(values, state[n]) for n, values in model.state_dict().items())
    (row,) = [r for r in read_csv(next(trained.rglob("*ratios=0,0.5.csv"))) if r["ratio"] == "0.5"]
    assert sum(p.numel() for p in model.parameters()) == int(row["parameters"])
    dataset = load_dataset("digits", trained)
    ((images, labels),) = dataset.test_batches(len(dataset.test_images))
    with torch.no_grad():
        logits = model(images)
    accuracy = 100 * (logits.argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(float(row["accuracy"]), abs=1e-3)
    session = onnxruntime.InferenceSession(f"{path}.onnx")
    found = session.run(None, {"images": (dataset.test_images / 255).numpy()})[0]
    assert np.abs(found - logits.numpy()).max() < 1e-4


def test_a_sliced_network_is_tested_and_sliced_again(quick, trained):
    flags = (*DIGITS, *CHANNELS, "--save_pruned", 0.5, "--output_dir", trained)
    quick("test_prune.py", *flags)
    path = trained / "saved_models" / f"{NAME}_sparsity=0.5.npz"
    for further in ((*CHANNELS, "--save_pruned", 0.3), ("--save_pruned", 0.3)):
        again = ("test_prune.py", "--model_path", path, *further, "--output_dir", trained)
        status, out, err = quick(*again)
        assert status == 0 and "It is pruned already: " in out, err
    first, *others = sorted(trained.rglob("saved_models/*.npz"), key=lambda p: len(p.name))
    counts = [sum(p.numel() for p in load_pruned(other).parameters()) for other in others]
    whole = sum(p.numel() for p in load_pruned(first).parameters())
    assert sorted(counts)[1] == whole > sorted(counts)[0]
    for other in others:
        before = read_contents(other, "")["pruning"]["pruned_before"]
        assert before["sparsity"] == 0.5 and before["granularity"] == "channels"


def test_a_tensor_that_two_layers_share_is_counted_once():
    model, images = SharedTensor(), torch.zeros(128, 64)
    columns = measured(model, model, images, "fp32")
    assert columns["bytes"] == 4 * columns["parameters"]


@pytest.mark.parametrize(
    ("arch", "data", "shape"),
    [
        ("networks:narrow_resnet18", "cifar10", (3, 32, 32)),
        ("own_networks:vit", "digits", (1, 8, 8)),
    ],
)
def test_other_networks_are_sliced_and_loaded_bit_for_bit(
    arch, data, shape, quick, write_npz, tmp_path, monkeypatch
):
    onnxruntime = pytest.importorskip("onnxruntime")
    sliced = []

    def save(paths, model, *others):
        sliced.append(model)
        return SAVE(paths, model, *others)

    monkeypatch.setattr("test_prune.save", save)
    monkeypatch.setattr(TIMED, lambda *_: SPEED)  # takes half a minute
    write_npz(tmp_path, data, train=4, test=4)
    torch.save(build_model(arch, 10, shape[0], shape[1]).state_dict(), tmp_path / "random.pt")
    flags = ("--data", data, "--arch", arch, "--model_path", tmp_path / "random.pt")
    flags += ("--granularity", "channels", "--ratios", 0.3, "--save_pruned", 0.3)
    flags += ("--pruned_format", "npz", "onnx")
    flags += ("--data_dir", tmp_path, "--output_dir", tmp_path)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    (row,) = read_csv(next(tmp_path.rglob("SFW_prune_test/*.csv")))
    assert 0.3 <= float(row["removed"]) < 0.5
    loaded = load_pruned(next(tmp_path.rglob("saved_models/*.npz")), arch=arch)
    images = torch.rand(4, *shape)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (DATASETS[data].mean, DATASETS[data].std))
    inputs = (images - mean) / std
    with torch.no_grad():
        logits = loaded(inputs)
        assert torch.equal(sliced[0](inputs), logits)
    session = onnxruntime.InferenceSession(next(tmp_path.rglob("*.onnx")))
    found = session.run(None, {"images": images.numpy()})[0]
    assert np.abs(found - logits.numpy()).max() < 1e-3 * np.abs(found).max()


def test_a_recalibrated_network_is_saved(quick, write_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(TIMED, lambda *_: SPEED)
    write_npz(tmp_path, "cifar10", train=16, test=4)
    arch = "networks:narrow_resnet18"
    config = Config(arch=arch, epoch_num=1, output_dir=tmp_path)
    torch.manual_seed(0)
    model = build_model(arch, 10, 3, 32)
    write_contents(config.files.model, model_contents(model, config, 1, {}))
    flags = ("--arch", arch, "--epoch_num", 1, "--data_dir", tmp_path, "--output_dir", tmp_path)
    own = ("--granularity", "channels", "--ratios", 0.9, "--save_pruned", 0.9)
    status, _, err = quick("test_prune.py", *flags, *own, "--bn_recalibrate", 8)
    assert status == 0, err
    (row,) = read_csv(next(tmp_path.rglob("SFW_prune_test/*.csv")))
    assert {"accuracy", "recalibrated", "npz_bytes"} < row.keys()
    saved = load_pruned(next(tmp_path.rglob("saved_models/*.npz")), arch)
    assert saved.bn1.running_mean.count_nonzero() > 0  # untrained: 0 before
    assert sum(p.numel() for p in saved.parameters()) == int(row["parameters"])


BAD_FLAGS = {
    "--allocation lamp": "--allocation lamp: is for single weights; for channels, choose global or",
    "--prune_scope weights": "--prune_scope: is for --granularity weights; give that, or leave out",
    "--repair 9": "--repair: is for --granularity weights or N:M; give that, or leave out --repair",
    "--patterns 2:4": "--patterns: is for --granularity N:M; give that, or leave out --patterns",
    "--save_pruned 2:4": "--save_pruned 2:4: does not go with --granularity channels; give ratios",
    "--round_to 0": "--round_to 0: must be at least 1",
    "--channel_score l1": "--channel_score l1: choose one of relative, l2",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_flags_that_do_not_fit_channels_are_refused(flags, quick, tmp_path):
    result = quick("test_prune.py", *DIGITS, *CHANNELS, *flags.split(), "--output_dir", tmp_path)
    assert_refused(result, f"error: {BAD_FLAGS[flags]}")


@pytest.mark.parametrize("flags", ["--round_to 8", "--channel_score l2"])
def test_flags_of_channels_are_refused_for_weights(flags, quick, tmp_path):
    result = quick("test_prune.py", *DIGITS, *flags.split(), "--output_dir", tmp_path)
    assert_refused(result, f"{flags.split()[0]}: is for --granularity channels; give that")


def test_recalibrating_slices_without_batch_norm_is_not_referred_to_repair(quick, trained):
    flags = (*DIGITS, *CHANNELS, "--bn_recalibrate", 9, "--output_dir", trained)
    result = quick("test_prune.py", *flags)
    assert_refused(
        result, "error: --bn_recalibrate: Mlp has no BatchNorm with running statistics; leave"
    )


def test_batch_norm_without_running_statistics_is_sliced():
    layers = (nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8, track_running_stats=False))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3))
    ranking = ChannelRanking(model, torch.randn(4, 3, 2, 2))
    sliced, removed = ranking.slice(0.5)
    assert removed == 0.5 and sliced[2].num_features == 4


def test_rounding_that_leaves_nothing_to_cut_is_refused(quick, trained):
    flags = (*DIGITS, *CHANNELS, "--round_to", 1000, "--output_dir", trained)
    result = quick("test_prune.py", *flags)
    assert_refused(result, "error: --round_to 1000: then all layers keep all channels; give")


def test_without_torch_pruning_one_line_says_what_to_install(quick, trained, monkeypatch):
    monkeypatch.setattr("utils.process.errors.find_spec", lambda name: None)
    result = quick("test_prune.py", *DIGITS, *CHANNELS, "--output_dir", trained)
    assert_refused(result, "--granularity channels: needs torch_pruning; pip install -r")


def test_channels_are_found_and_timed_on_training_images(quick, tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(TIMED, lambda steps, *_: timed.append(steps[0].args[0]) or SPEED)
    torch.save(build_model("networks:LeavesEarly", 10, 1, 8).state_dict(), tmp_path / "random.pt")
    flags = ("--data", "digits", "--arch", "networks:LeavesEarly", *CHANNELS)
    flags += ("--model_path", tmp_path / "random.pt", "--output_dir", tmp_path)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    _, row = read_csv(next(tmp_path.rglob("SFW_prune_test/*.csv")))
    assert float(row["removed"]) >= 0.5
    (_, images, *_), dataset = timed, load_dataset("digits", tmp_path)
    values = (dataset.train_images.unique() / 255 - dataset.mean[0]) / dataset.std[0]
    assert images.shape == (128, 1, 8, 8)
    assert (images.unique().unsqueeze(1) - values).abs().amin(1).max() < 1e-5


def test_small_data_sets_give_as_many_images_as_are_timed(write_npz, tmp_path):
    write_npz(tmp_path, "digits", train=50)
    images = training_images(load_dataset("digits", tmp_path))
    assert len(images) == 128 and images[0].equal(images[50])


def test_a_sliced_network_that_fails_later_ends_in_one_line(quick, trained, monkeypatch):
    def fail(*_):
        raise IndexError("there is no\nchannel 9")

    monkeypatch.setattr("test_prune.evaluate", fail)
    status, _, err = quick("test_prune.py", *DIGITS, *CHANNELS, "--output_dir", trained)
    assert status == 1
    assert err == (
        "error: --granularity channels: the network sliced at ratio 0 does not run (IndexError:"
        " there is no); prune this network's weights instead\n"
    )
