"""Learning-rate schedules: the learning rate of every step, as a multiple of the initial one.

Each schedule is called once before an epoch with the epoch (counting from 0), the number of epochs,
the number of steps in an epoch, and the mean training loss of each epoch so far. It returns one
multiple for each step of the epoch.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

Schedule = Callable[[int, int, int, Sequence[float]], Sequence[float]]


def keep(epoch: int, epochs: int, steps: int, losses: Sequence[float]) -> Sequence[float]:
    """The learning rate stays as it is."""
    return [1.0] * steps


def decrease_3(epoch: int, epochs: int, steps: int, losses: Sequence[float]) -> Sequence[float]:
    """Divide by 10 after one third and again after two thirds of the epochs, rounded down.

    The first epoch always runs at the initial rate, however few epochs there are.
    """
    drops = [drop for drop in (epochs // 3, 2 * epochs // 3) if drop > 0]
    return [0.1 ** sum(epoch >= drop for drop in drops)] * steps


def dynamic_change(epoch: int, epochs: int, steps: int, losses: Sequence[float]) -> Sequence[float]:
    """`decrease_3`, and every 5 epochs from the 25th a change by the trend of the training loss.

    The rate is multiplied by 0.7 when the mean loss of the last 5 epochs is greater than that of
    the last 10, and by 1.06 when it is less (Miao et al., ICLR 2022).
    """
    trend = 1.0
    for end in range(25, epoch + 1, 5):
        recent, longer = fmean(losses[end - 5 : end]), fmean(losses[end - 10 : end])
        trend *= 0.7 if recent > longer else 1.06 if recent < longer else 1.0
    return [trend * factor for factor in decrease_3(epoch, epochs, steps, losses)]


def cosine(epoch: int, epochs: int, steps: int, losses: Sequence[float]) -> Sequence[float]:
    """Half a cosine from 1 to 0 over all steps (Loshchilov and Hutter, ICLR 2017, no restarts)."""
    return [(1 + math.cos(math.pi * done)) / 2 for done in _progress(epoch, epochs, steps)]


def linear(epoch: int, epochs: int, steps: int, losses: Sequence[float]) -> Sequence[float]:
    """A straight line from 1 to 0 over all steps."""
    return [1 - done for done in _progress(epoch, epochs, steps)]


def _progress(epoch: int, epochs: int, steps: int) -> list[float]:
    """The fraction of all steps that is done before each step of the epoch."""
    return [(epoch * steps + step) / (epochs * steps) for step in range(steps)]


def warm_up(rates: Sequence[float], first: int, warmup_steps: int) -> list[float]:
    """The rates of successive steps, raised linearly over the first `warmup_steps` of a training.

    `first` is the number of steps before them. Step i, counting from 1, has i / warmup_steps of its
    rate, until i reaches warmup_steps (Goyal et al., arXiv 1706.02677, section 2.2).
    """
    return [rate * min(1.0, i / max(1, warmup_steps)) for i, rate in enumerate(rates, first + 1)]


LR_SCHEMES: dict[str, Schedule] = {
    scheme.__name__: scheme for scheme in (dynamic_change, decrease_3, keep, cosine, linear)
}
