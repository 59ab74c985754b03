"""Model files: plain tensors and plain types."""

import torch
from runs import RUN
from torch import nn

from utils.checkpoints.model_file import state_on_cpu
from utils.settings.config import Config


def test_a_model_file_has_plain_tensors_whatever_the_memory_format():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    assert all(values.is_contiguous() for values in state_on_cpu(model).values())


def test_model_file_holds_plain_types_and_what_was_measured(trained):
    contents = torch.load(trained / "saved_models" / f"{RUN}.pt", weights_only=True)
    assert set(contents) == {"state_dict", "config", "epoch", "metrics", "versions"}
    assert Config(**contents["config"]).run_name == RUN
    assert contents["epoch"] == 2
    assert contents["metrics"].pop("sha256").keys() == {"train", "test"}
    assert {len(values) for values in contents["metrics"].values()} == {2}
    assert contents["versions"]["torch"] == torch.__version__
