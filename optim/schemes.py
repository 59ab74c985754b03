"""Learning-rate schemes: by what the learning rate is multiplied before an epoch.

Each takes the epoch about to start (counting from 0), the number of epochs, and the mean training
loss of each epoch so far.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

Scheme = Callable[[int, int, Sequence[float]], float]


def keep(epoch: int, epochs: int, losses: Sequence[float]) -> float:
    """The learning rate stays as it is."""
    return 1.0


def decrease_3(epoch: int, epochs: int, losses: Sequence[float]) -> float:
    """Divide by 10 after one third and again after two thirds of the epochs, rounded down."""
    return 0.1 if epoch in (epochs // 3, 2 * epochs // 3) else 1.0


def dynamic_change(epoch: int, epochs: int, losses: Sequence[float]) -> float:
    """`decrease_3`, and every 5 epochs from the 25th a step by the trend of the training loss.

    Multiply by 0.7 when the mean loss of the last 5 epochs is greater than that of the last 10, by
    1.06 when it is less (Miao et al., ICLR 2022).
    """
    factor = decrease_3(epoch, epochs, losses)
    if epoch >= 25 and epoch % 5 == 0:
        recent, longer = fmean(losses[-5:]), fmean(losses[-10:])
        factor *= 0.7 if recent > longer else 1.06 if recent < longer else 1.0
    return factor


LR_SCHEMES: dict[str, Scheme] = {
    "dynamic_change": dynamic_change,
    "decrease_3": decrease_3,
    "keep": keep,
}
