"""Networks of one's own: how factories are found and called, and what is refused."""

import copy
import sys

import pytest
import torch
from runs import assert_refused, files_in
from torch import nn

from models import build_model, is_factory
from models.check import dry_run

REFUSED = {
    "nets_nowhere:vit": "there is no module nets_nowhere in the current folder, and none is",
    "own_networks.inner:vit": "there is no module own_networks.inner in the current folder",
    "own_networks:absent": "own_networks.py has nothing called absent that can be called",
    "own_networks:not_callable": "has nothing called not_callable that can be called",
    "own_networks:broken": "fails with KeyError: 'width' (own_networks.py, line ",
    "own_networks:no_argument": "fails with TypeError: no_argument() got an unexpected keyword",
    "own_networks:leaves": "fails with SystemExit: 0 (own_networks.py, line ",
    "own_networks:no_module": "returns str, which is no torch.nn.Module",
    "own_networks:empty": "its network has no parameters, or all are frozen",
    "own_networks:frozen": "its network has no parameters, or all are frozen",
    "own_networks:other_size": "takes no images of shape (2, 1, 8, 8) in evaluation mode: Runtime",
    "own_networks:other_classes": "returns an output of shape (2, 7) in evaluation mode, and must",
    "own_networks:pairs": "returns an output of type tuple in training mode, and must return",
    "own_networks:whole_numbers": "parameter count is int64 (3,): each must hold real numbers",
    "own_networks:without_gradient": "no gradient leads from its network's outputs to what is to",
    "own_networks:sparse": "its layer 1.words has sparse gradients; build it with sparse=False",
    "own_networks:extra_state": "1._extra_state in its state dict is no tensor: files hold",
    "own_networks:masked": "its layer 1 has a mask of torch.nn.utils.prune; make it final by",
    "own_networks:data_parallel": "its layer 0 comes from DataParallel; give the plain module",
    "own_networks:scripted": "its network comes from TorchScript; give the plain module",
    "own_networks:traced": "its network comes from TorchScript; give the plain module",
    "own_networks:exported": "returns ExportedProgram, which is no torch.nn.Module",
    "own_networks:module_of_export": "its network comes from torch.export; give the plain module",
    "own_networks:unflattened": "its network comes from torch.export; give the plain module",
    "own_networks:optimised": "its network comes from torch.compile; give the plain module",
}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("arch", REFUSED)
def test_a_network_that_cannot_be_used_is_refused_in_one_line(arch):
    with pytest.raises(ValueError) as caught:
        build_model(arch, 10, 1, 8)
    assert REFUSED[arch] in str(caught.value) and "\n" not in str(caught.value)


def test_a_script_refuses_it_before_anything_is_written(quick, tmp_path):
    arch = "own_networks:broken"
    result = quick("train_prune.py", "--data", "digits", "--arch", arch, "--output_dir", tmp_path)
    assert_refused(result, f"--arch {arch}: ")
    assert REFUSED[arch] in result[2]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def net(:", "importing {} fails with SyntaxError: invalid syntax ({}.py, line 1)"),
        ("import absent", "importing {} fails with ModuleNotFoundError: No module named 'absent'"),
        (
            "\n\n1 / 0",
            "importing {} fails with ZeroDivisionError: division by zero ({}.py, line 3)",
        ),
        ("import sys; sys.exit()", "importing {} fails with SystemExit ({}.py, line 1)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_why(source, message, tmp_path, monkeypatch):
    name = f"nets_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        build_model(f"{name}:net", 10, 1, 8)
    assert message.format(name, name) in str(caught.value)
    assert "__init__.py" not in str(caught.value)  # importlib's line says nothing


def test_a_module_in_the_current_folder_is_found_and_the_path_is_left_as_it_was(
    tmp_path, monkeypatch
):
    source = "from torch import nn\nclass Nets:\n    def net(num_classes):\n"
    source += "        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    (tmp_path / "nets_here.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert isinstance(build_model("nets_here:Nets.net", 3, 1, 8), nn.Sequential)
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "nets_here")


@pytest.mark.parametrize("arch", ["a:b", "a.b:c", "a:b.c", "é:ü"])
def test_names_of_factories(arch):
    assert is_factory(arch)


@pytest.mark.parametrize(
    "arch", ["a", "a:", ":b", "a:b:c", "a/b:c", "a b:c", "a:b()", "..a:b", "1a:b"]
)
def test_names_that_are_no_factories(arch, quick):
    assert not is_factory(arch)
    result = quick("train_prune.py", "--arch", arch)
    assert_refused(result, f"--arch {arch}: choose one of ResNet18, VGG16, Mlp, or MODULE:FACTORY")


def test_a_factory_gets_what_its_signature_names():
    for arch, channels in (("own_networks:vit", 3), ("torchvision.models:resnet18", 3)):
        assert build_model(arch, 4, channels, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("training", [True, False])
def test_a_dry_run_leaves_everything_as_it_was(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    model[1].train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    state = torch.get_rng_state()
    dry_run(model, torch.ones(2, 1, 5, 5), training)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [m.training for m in model.modules()] == [False, False, True, False]


def test_layers_that_learn_their_sizes_from_the_first_images_are_drawn_by_the_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model("own_networks:lazy", 10, 1, 8).state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


def test_an_epoch_that_ends_in_one_image_is_refused_where_batch_norm_cannot_take_it(
    quick, write_npz, tmp_path
):
    write_npz(tmp_path, "digits", train=33, test=4)
    flags = ("--data", "digits", "--data_dir", tmp_path, "--output_dir", tmp_path / "out")
    flags += ("--epoch_num", 1)
    own = (*flags, "--arch", "own_networks:needs_two")
    result = quick("train_prune.py", *own, "--train_batchsize", 8)
    assert_refused(result, "--train_batchsize 8: an epoch of 33 images has a batch")
    assert quick("train_prune.py", *own, "--train_batchsize", 9)[0] == 0
    assert quick("train_prune.py", *flags, "--arch", "Mlp", "--train_batchsize", 8)[0] == 0


def test_a_network_that_keeps_what_it_computes_can_be_copied_once_it_is_checked():
    copy.deepcopy(build_model("own_networks:remembering", 10, 1, 8))


def test_a_network_with_a_convolution_in_three_dimensions_is_trained(quick, tmp_path):
    flags = ("--data", "digits", "--arch", "own_networks:cubes", "--epoch_num", 1)
    assert quick("train_prune.py", *flags, "--output_dir", tmp_path)[0] == 0
