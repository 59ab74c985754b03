"""Which groups of channels can be cut: the network runs without them, and they are proven."""

import copy
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.process.errors import notify, reason
from utils.prune.channels.graph import Unit, channels_of, coupled_groups, cut_out, refusal
from utils.prune.channels.proof import unproven
from utils.prune.channels.scores import squared_norms

UNPROVEN = "other channels depend on them than those that torch-pruning cuts out with them"

Group = list[Unit]
# Why channels stay, by the number of the group.
Causes = dict[int, str]


def groups_that_can_be_cut(model: nn.Module, images: Tensor) -> list[Group]:
    """The groups of channels that can be cut out unit by unit; `model` itself is not run.

    A note says why channels of others stay. Raises UserError if there are none.
    """
    groups, lost = coupled_groups(model, images)
    stay = {"no gradient leads to them from the outputs": lost}  # layers, by the cause
    for check in (_cannot_shrink, _without_score, _do_not_run, _unproven, _unproven_when_cut):
        causes = check(model, images, groups) if groups else {}
        for number, cause in causes.items():
            stay.setdefault(cause, []).extend(d.layer for unit in groups[number] for d in unit)
        groups = [group for number, group in enumerate(groups) if number not in causes]
    notes = [f"{_some_of(layers)}: {cause}" for cause, layers in stay.items() if layers]
    if not groups:
        why = "; of ".join(notes) or "its last layer: they are the network's outputs"
        raise refusal(f"no channels can be cut out: all stay of {why}")
    for note in notes:
        notify(f"all channels stay of {note}")
    return groups


def _some_of(names: Sequence[str]) -> str:
    """The first few of these names, each once, and how many more there are."""
    distinct = list(dict.fromkeys(names))
    rest = f" and {len(distinct) - 4} more" if len(distinct) > 4 else ""
    return ", ".join(distinct[:4]) + rest


def _cannot_shrink(model: nn.Module, images: Tensor, groups: list[Group]) -> Causes:
    return {n: "they all go together" for n, group in enumerate(groups) if len(group) == 1}


def _without_score(model: nn.Module, images: Tensor, groups: list[Group]) -> Causes:
    causes = {}
    for number, group in enumerate(groups):
        try:
            squared_norms(model, group)
        except Exception as error:  # a layer of another kind, or channels that it does not have
            causes[number] = f"their weights are not found ({reason(error)})"
    return causes


@torch.no_grad()
def _do_not_run(model: nn.Module, images: Tensor, groups: list[Group]) -> Causes:
    """Those with which the network fails, or has other outputs, when some units are cut out."""
    shape = copy.deepcopy(model)(images).shape

    def failure(tried: list[Group]) -> str | None:
        try:
            outputs = cut_out(model, _units_to_try(tried))(images).shape
        except Exception as error:  # whatever the network's own code raises
            return reason(error)
        return None if outputs == shape else f"outputs {tuple(outputs)} for {tuple(shape)}"

    if failure(groups) is None:
        return {}
    failures = {n: text for n, group in enumerate(groups) if (text := failure([group]))}
    cause = f"the network does not run with fewer of them ({next(iter(failures.values()), '')})"
    return dict.fromkeys(failures, cause)


def _unproven(model: nn.Module, images: Tensor, groups: list[Group]) -> Causes:
    return dict.fromkeys(unproven(model, images, groups), UNPROVEN)


def _unproven_when_cut(model: nn.Module, images: Tensor, groups: list[Group]) -> Causes:
    """Those that go together in the dense network alone, as where code halves what is left."""
    removed = _units_to_try(groups)
    return _unproven(cut_out(model, removed), images, _renumbered(groups, removed))


def _units_to_try(groups: list[Group]) -> list[Unit]:
    """Every other unit of the first half of each group: another fraction of each of its parts."""
    return [unit for group in groups for unit in group[: max(1, len(group) // 2) : 2]]


def _renumbered(groups: list[Group], removed: list[Unit]) -> list[Group]:
    """The units that are left, with the channels that they have then."""
    lost = channels_of(removed)
    gone = {id(unit) for unit in removed}
    return [
        [
            {d: [i - bisect_left(lost.get(d, ()), i) for i in own] for d, own in unit.items()}
            for unit in group
            if id(unit) not in gone
        ]
        for group in groups
    ]
