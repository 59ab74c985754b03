"""Model files: plain tensors and plain types."""

import torch
from runs import RUN

from utils.settings.config import Config


def test_a_model_file_has_plain_tensors_whatever_the_memory_format(quick, write_npz, tmp_path):
    write_npz(tmp_path, "cifar10")
    flags = ("--data", "cifar10", "--arch", "VGG16", "--epoch_num", "1", "--train_batchsize", 20)
    quick("train_prune.py", *flags, "--data_dir", tmp_path, "--output_dir", tmp_path)
    (path,) = (tmp_path / "saved_models").glob("*.pt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(values.is_contiguous() for values in state.values())


def test_model_file_holds_plain_types_and_what_was_measured(trained):
    contents = torch.load(trained / "saved_models" / f"{RUN}.pt", weights_only=True)
    assert set(contents) == {"state_dict", "config", "epoch", "metrics", "versions"}
    assert Config(**contents["config"]).run_name == RUN
    assert contents["epoch"] == 2
    assert {len(values) for values in contents["metrics"].values()} == {2}
    assert contents["versions"]["torch"] == torch.__version__
