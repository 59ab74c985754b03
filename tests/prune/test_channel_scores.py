"""What coupled channels are worth."""

import pytest
import torch
from torch import nn

from utils.prune.channels.scores import SCORES
from utils.prune.channels.slicing import ChannelRanking


def test_scores_differ_where_a_tensor_has_larger_entries():
    pytest.importorskip("torch_pruning")
    first, second = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[10.0], [9.0], [9.5]]).expand(3, 4))
        second.weight.copy_(torch.tensor([[0.01, 0.1, 0.1]]).expand(2, 3))
    kept = {}
    for score in SCORES:
        ranking = ChannelRanking(nn.Sequential(first, second), torch.ones(2, 4), score=score)
        kept[score] = ranking.cut(1)[0].weight[:, 0].tolist()
    assert kept == {"l2": [10, 9.5], "relative": [9, 9.5]}


def test_relative_scores_do_not_depend_on_the_scale_of_a_tensor():
    squares = torch.rand(3, 7, dtype=torch.float64)
    scaled = squares * torch.tensor([[1e-6], [1.0], [1e6]])
    torch.testing.assert_close(SCORES["relative"](scaled), SCORES["relative"](squares))
    torch.testing.assert_close(SCORES["l2"](squares), squares.sum(0) ** 0.5)


def test_tensors_that_are_all_zero_count_nothing():
    squares = torch.stack([torch.zeros(3), torch.tensor([1.0, 4.0, 4.0])]).double()
    assert SCORES["relative"](squares).argsort().tolist()[0] == 0
