"""BatchNorm's statistics measured anew: the right ones, and nothing else changed."""

import copy
import re

import pytest
import torch
from runs import read_csv
from torch import nn

from models import build_model
from utils.checkpoints.model_file import new_model
from utils.datasets import load_dataset
from utils.process.errors import UserError
from utils.prune.corrections.recalibrate import (
    batch_norms,
    calibration_batches,
    note_stale_statistics,
    recalibrate,
)
from utils.settings.config import Config


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.BatchNorm1d(5),
    ).eval()


def some_batches(*sizes):
    torch.manual_seed(1)
    return [3 + 2 * torch.randn(size, 3, 8, 8) for size in sizes]


def test_the_first_layers_statistics_are_those_of_the_images():
    model, (images,) = network(), some_batches(50)
    recalibrate(model, [images])
    features = model[0](images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, features.mean(1))
    torch.testing.assert_close(model[1].running_var, features.var(1))


@pytest.mark.parametrize(("count", "sizes"), [(128, [128]), (129, [129]), (257, [128, 129])])
def test_no_batch_has_a_single_image(count, sizes, tmp_path):
    batches = calibration_batches(load_dataset("digits", tmp_path), count, "--bn_recalibrate")
    assert [len(batch) for batch in batches] == sizes


def test_batches_count_by_their_sizes():
    model, batches = network(), some_batches(30, 30, 6)
    recalibrate(model, batches)
    means = torch.stack([model[0](images).mean((0, 2, 3)) for images in batches])
    variances = torch.stack([model[0](x).transpose(0, 1).flatten(1).var(1) for x in batches])
    weights = torch.tensor([[30.0], [30.0], [6.0]]) / 66
    torch.testing.assert_close(model[1].running_mean, (weights * means).sum(0))
    torch.testing.assert_close(model[1].running_var, (weights * variances).sum(0))


def test_all_calls_of_a_layer_count():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) + self.norm(input=x + 10)

    model, batches = Net(), [torch.randn(30, 4), torch.randn(6, 4)]
    recalibrate(model, batches)
    torch.testing.assert_close(model.norm.running_mean, torch.cat(batches).mean(0) + 5)


def test_a_layer_of_which_only_the_forward_is_called_counts_too():
    class Bare(nn.BatchNorm1d):
        def __call__(self, x):
            return self.forward(x)

    model, batches = nn.Sequential(Bare(4)), [torch.randn(30, 4), torch.randn(6, 4)]
    recalibrate(model, batches)
    torch.testing.assert_close(model[0].running_mean, torch.cat(batches).mean(0))


def test_later_layers_see_what_earlier_ones_normalise_anew():
    model, (images,) = network(), some_batches(50)
    recalibrate(model, [images])
    features = nn.functional.batch_norm(model[0](images), None, None, *model[1].parameters(), True)
    features = model[5](features.relu().flatten(1))  # dropout is off
    torch.testing.assert_close(model[6].running_mean, features.mean(0))


def test_the_old_statistics_play_no_part_and_weights_and_modes_stay():
    model, other = network(), network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for norm in batch_norms(other):
            norm.running_mean.fill_(1e6)
            norm.running_var.fill_(1e6)
    for net in (model, other):
        recalibrate(net, some_batches(20, 20))
    for norm, same in zip(batch_norms(model), batch_norms(other), strict=True):
        assert torch.equal(norm.running_mean, same.running_mean)
        assert torch.equal(norm.running_var, same.running_var)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module.training for module in model.modules())
    assert {norm.momentum for norm in batch_norms(model)} == {0.1}


def test_the_images_are_the_same_every_time_and_as_many_as_asked_for(tmp_path, write_npz):
    write_npz(tmp_path, "cifar10", train=240)
    dataset = load_dataset("cifar10", tmp_path)
    once, again = (calibration_batches(dataset, 200, "--x") for _ in range(2))
    assert [len(inputs) for inputs in once] == [128, 72]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


STALE = ("--data", "digits", "--arch", "own_networks:stale", "--epoch_num", 3)


def test_a_note_says_what_recalibration_gives_where_running_statistics_are_stale(quick, tmp_path):
    flags = (*STALE, "--output_dir", tmp_path)
    status, _, trained = quick("train_prune.py", *flags)
    _, _, tested = quick("test_prune.py", *flags, "--ratios", 0, 0.5)
    _, _, recalibrated = quick("test_prune.py", *flags, "--ratios", 0, "--bn_recalibrate", 1000)
    (table,) = tmp_path.rglob("SFW_prune_test/*bn_recalibrate=1000_ratios=0.csv")
    (row,) = read_csv(table)
    assert float(row["recalibrated"]) > float(row["accuracy"]) + 40
    before, after = f"{float(row['accuracy']):.2f}", f"{float(row['recalibrated']):.2f}"
    note = (
        f"note: test_prune.py --bn_recalibrate 1000 gives a test accuracy of {after} % instead of"
        f" {before} %: BatchNorm's running statistics do not fit the weights, probably since the"
        " training had few steps (36)\n"
    )
    assert (status, trained, tested, recalibrated) == (0, note, note, "")


def test_where_recalibration_does_not_help_no_note_is_made(quick, write_npz, tmp_path):
    """The labels are drawn: what the network learns of them is of no use for the test images."""
    write_npz(tmp_path, "digits", train=40, test=400)
    flags = ("--data", "digits", "--arch", "own_networks:needs_two", "--train_batchsize", 4)
    flags += ("--epoch_num", 20, "--data_dir", tmp_path, "--output_dir", tmp_path)
    status, out, err = quick("train_prune.py", *flags)
    training, test = (float(x) for x in re.findall(r"accuracy ([\d.]+) %", out)[-2:])
    assert training > test + 20
    assert (status, err) == (0, "")


def test_the_measurement_for_the_note_changes_nothing(tmp_path, capsys):
    config = Config(data="digits", arch="own_networks:stale", data_dir=tmp_path)
    model, dataset = new_model(config).train(), config.load_dataset()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    note_stale_statistics(config, model, dataset, training=100.0, test=-100.0)
    assert "--bn_recalibrate 1000 gives" in capsys.readouterr().err
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_images_of_tiny_imagenet_have_the_networks_size(tmp_path, write_npz):
    write_npz(tmp_path, "tiny", train=10)
    (inputs,) = calibration_batches(load_dataset("tiny", tmp_path), 4, "--x")
    assert inputs.shape == (4, 3, 32, 32)


def test_more_images_than_there_are_are_refused(tmp_path, write_npz):
    write_npz(tmp_path, "cifar10", train=40)
    with pytest.raises(UserError, match="--repair 41: there are 40 training images"):
        calibration_batches(load_dataset("cifar10", tmp_path), 41, "--repair")


@pytest.mark.cuda
def test_recalibration_on_a_gpu_measures_what_a_cpu_does():
    inputs = [
        torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    statistics = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = build_model("ResNet18", 10, 3, 32).to(device)
        recalibrate(model, [x.to(device) for x in inputs])
        statistics.append({name: values.cpu() for name, values in model.named_buffers()})
    for name, values in statistics[0].items():
        torch.testing.assert_close(statistics[1][name], values, rtol=1e-2, atol=1e-2)
