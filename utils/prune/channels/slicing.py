"""Slicing: channels are cut out of a network, which leaves a smaller dense one."""

import copy
import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from math import ceil, gcd

from torch import Tensor, nn

from utils.compute.measure import multiply_adds
from utils.process.errors import UserError, reason
from utils.prune.channels.graph import Dimension, Unit, channels_of, cut_out, refusal
from utils.prune.channels.scores import SCORES, squared_norms
from utils.prune.channels.trial import groups_that_can_be_cut
from utils.prune.weights.allocation import ALLOCATIONS


class ChannelRanking:
    """The units of a network's channels in the order in which they are cut out.

    `score`, a key of SCORES, says what a unit is worth, and `allocation`, a key of ALLOCATIONS, how
    units of different groups compare. No layer is emptied: the best unit of each dimension stays.
    With `round_to` a layer keeps a number of channels that is a multiple of it, or all. The
    network's outputs stay, and so do channels without which it does not run, or of which it is not
    proven that they go together. `images` is a batch of at least two, as the network was trained
    on.

    Raises UserError for a network of which nothing can be cut out. Needs torch-pruning.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        allocation: str = "global",
        score: str = "relative",
        round_to: int = 1,
    ) -> None:
        # Copies of it are run: a forward pass may leave in a network what cannot be copied.
        self.model, self.images = copy.deepcopy(model.eval()), images
        self.groups = groups_that_can_be_cut(self.model, images)
        ranked: list[tuple[float, int]] = []
        for number, group in enumerate(self.groups):
            worth, order = SCORES[score](squared_norms(model, group)).sort(stable=True)
            units = [group[i] for i in order.tolist()]
            scores = ALLOCATIONS[allocation](worth).tolist()
            best = {dimension: i for i, unit in enumerate(units) for dimension in unit}
            kept = set(best.values())
            ranked += [(value, number) for i, value in enumerate(scores) if i not in kept]
            others = [unit for i, unit in enumerate(units) if i not in kept]
            group[:] = [*others, *(units[i] for i in sorted(kept))]
        self.order = [number for _, number in sorted(ranked)]
        self.round_to = round_to
        by_module = multiply_adds(copy.deepcopy(self.model), images)
        self.dense_multiply_adds = by_module[""]
        self.estimates = self._estimates(by_module)
        self.fractions = {0: 0.0}  # those that are known
        try:
            self.fraction(len(self.order))
        except Exception as error:
            raise refusal(f"it does not run when it is narrow ({reason(error)})") from None
        if not self.fraction(len(self.order)):
            raise UserError(
                f"--round_to {round_to}: then all layers keep all channels; give a smaller number"
            )

    def cut(self, count: int) -> nn.Module:
        """A copy of the network without the first `count` units, less what rounding keeps."""
        removed, units = Counter(self.order[:count]), []
        for number, group in enumerate(self.groups):
            # By the dimensions in which they lie: layers that are concatenated share a group.
            alike: dict[frozenset[Dimension], list[Unit]] = defaultdict(list)
            for unit in group[: removed[number]]:
                alike[frozenset(unit)].append(unit)
            counts = Counter(map(frozenset, group))
            for kind, own in alike.items():
                # This many units go at a time, so that layers keep multiples of `round_to`.
                step = self.round_to // gcd(self.round_to, min(map(len, own[0].values())))
                stay = ceil((counts[kind] - len(own)) / step) * step
                units += own[: max(0, counts[kind] - stay)]
        return cut_out(self.model, units)

    def fraction(self, count: int) -> float:
        """The fraction of the multiply-adds that the network loses with these units."""
        if count not in self.fractions:
            left = multiply_adds(self.cut(count), self.images)[""]
            self.fractions[count] = 1 - left / self.dense_multiply_adds
        return self.fractions[count]

    def slice(self, ratio: float) -> tuple[nn.Module, float]:
        """A copy that has lost at least this fraction of the multiply-adds, and the fraction.

        It loses as few units as possible, or all that can be lost where that is not enough.
        """
        known = self.fractions.items()
        for probe in itertools.count(1):
            few = max((count for count, lost in known if lost < ratio), default=-1)
            enough = min((count for count, lost in known if lost >= ratio), default=few)
            if enough - few <= 1:
                return self.cut(enough), self.fraction(enough)
            # With bad estimates, too, a third of the probes halve the rest.
            middle = self._interpolated(few, enough, ratio) if probe % 3 else (few + enough) // 2
            self.fraction(middle)  # makes it known

    def _interpolated(self, few: int, enough: int, ratio: float) -> int:
        """Where between these counts the multiply-adds lost may be this fraction."""
        share = (ratio - self.fractions[few]) / (self.fractions[enough] - self.fractions[few])
        lost = self.estimates[few] + share * (self.estimates[enough] - self.estimates[few])
        return bisect_left(self.estimates, lost, few + 1, enough - 1)

    def _estimates(self, layers: dict[str, int]) -> list[float]:
        """About how many multiply-adds the network loses, by the number of units that it loses.

        Each of `layers` loses them in proportion to the channels in each of its dimensions.
        """
        left, lost = defaultdict(float, layers), [0.0]
        channels_by_dimension = channels_of(itertools.chain.from_iterable(self.groups))
        sizes = {dimension: len(channels) for dimension, channels in channels_by_dimension.items()}
        units = [iter(group) for group in self.groups]
        for number in self.order:
            lost.append(lost[-1])
            for dimension, channels in next(units[number]).items():
                part = left[dimension.layer] * len(channels) / sizes[dimension]
                left[dimension.layer] -= part
                sizes[dimension] -= len(channels)
                lost[-1] += part
        return lost
