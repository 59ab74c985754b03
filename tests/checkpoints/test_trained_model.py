"""Models loaded for a test: settings come from the file; unknown ones are not invented."""

import pytest
import torch

from utils.checkpoints.formats import write_pruned
from utils.checkpoints.model_file import model_contents, new_model, pruned_metadata, write_contents
from utils.checkpoints.onnx_file import InputImages
from utils.checkpoints.trained_model import load_model_file, load_pruned, load_trained
from utils.process.errors import UserError
from utils.reports.headings import heading_of
from utils.reports.logs import configuration_line
from utils.settings.config import Config

MLP = {"data": "digits", "arch": "Mlp"}
SGD = Config(**MLP, optimizer="SGD", constraint="unconstraints", lr=0.1, mode=None, seed=3)


def write_model(path, config):
    write_contents(path, model_contents(new_model(config), config, 1, {}))


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "authors.pt"
    torch.save(new_model(Config(**MLP)).state_dict(), path)
    return path


def test_flags_that_agree_with_the_file_are_accepted(tmp_path):
    """Each of these flags alone would be invalid beside the defaults of the others."""
    write_model(tmp_path / "a.pt", SGD)
    for flag in ({"constraint": "unconstraints"}, {"mode": None}, {"seed": 3}, {}):
        trained = load_model_file(tmp_path / "a.pt", flag | {"output_dir": tmp_path})
        assert trained.settings == load_model_file(tmp_path / "a.pt", {}).settings
        assert (trained.config.optimizer, trained.config.output_dir) == ("SGD", tmp_path)
        assert trained.files.run == SGD.run_name and trained.training_known


@pytest.mark.parametrize(("flag", "value", "stored"), [("lr", 1.0, "0.1"), ("seed", 0, "3")])
def test_a_flag_that_contradicts_the_file_is_refused_though_it_is_the_default(
    flag, value, stored, tmp_path
):
    write_model(tmp_path / "a.pt", SGD)
    message = rf"a.pt: was trained with --{flag} {stored}, not {value:g}; give that, or"
    with pytest.raises(UserError, match=message):
        load_model_file(tmp_path / "a.pt", {flag: value})


# What is known without the settings of the training.
OF_TEST = MLP | {"color_channel": 1, "image_size": 8, "test_fraction": 0.0, "precision": "fp32"}


def test_a_bare_state_dict_has_no_settings_but_those_that_it_is_tested_with(bare):
    trained = load_model_file(bare, MLP | {"lr": 0.3})
    assert trained.settings == OF_TEST and not trained.training_known
    assert configuration_line(trained.config, trained.training_known) == (
        "Configuration Data: digits Model: Mlp Color_Channel: 1 Image_Size: 8 Test_Fraction: 0"
        " Precision: fp32 Training_Settings: unknown"
    )
    above = heading_of(trained)
    assert above.title == "Mlp on digits: authors.pt, whose training settings are unknown"


def test_a_pruned_bare_state_dict_has_no_settings_either(bare, tmp_path):
    trained = load_model_file(bare, MLP)
    path = tmp_path / "pruned.npz"
    metadata = pruned_metadata(trained.settings, {"sparsity": 0.5})
    images = InputImages(1, 8, mean=(0.5,), std=(0.25,))
    write_pruned(path, "npz", trained.model, images, metadata)
    pruned = load_model_file(path, {})
    assert pruned.settings == OF_TEST and pruned.pruned_before == {"sparsity": 0.5}
    assert load_model_file(path, {"seed": 7}).settings == OF_TEST  # contradicts nothing
    with pytest.raises(UserError, match=r"was trained with --data digits, not mnist"):
        load_model_file(path, {"data": "mnist"})


def test_a_network_is_read_though_its_region_and_schedule_are_in_no_table_here(tmp_path):
    config = Config(**MLP, constraint="box", lr_scheme="my own", from_file=True)
    path = tmp_path / "a.pt"
    write_model(path, config)
    trained = load_model_file(path, {"constraint": "box"})
    assert trained.files.run == config.run_name
    assert heading_of(trained).title == "Mlp on digits: SFW, box, schedule my own"
    with pytest.raises(UserError, match=r"trained with --constraint box, not disc"):
        load_model_file(path, {"constraint": "disc"})
    metadata = pruned_metadata(config.as_dict(), {"sparsity": 0.5})
    pruned = tmp_path / "pruned.npz"
    write_pruned(pruned, "npz", trained.model, InputImages(1, 8, (0.5,), (0.25,)), metadata)
    assert load_pruned(pruned).state_dict().keys() == trained.model.state_dict().keys()


def test_a_file_cannot_name_a_region_that_leads_to_another_folder(tmp_path):
    config = Config(**MLP)
    contents = model_contents(new_model(config), config, 1, {})
    contents["config"]["constraint"] = "../box"
    write_contents(tmp_path / "a.pt", contents)
    with pytest.raises(UserError, match=r"a.pt: holds invalid settings \(--constraint ../box"):
        load_model_file(tmp_path / "a.pt", {})


def test_settings_added_later_have_their_defaults(tmp_path):
    config = Config(**MLP, output_dir=tmp_path)
    contents = model_contents(new_model(config), config, 1, {})
    del contents["config"]["sfw_init_iters"]
    write_contents(config.files.model, contents)
    assert load_trained(config).config == config
