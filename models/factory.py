"""Networks of one's own, built by factories that are named as in torchvision.models:resnet18."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import reduce

from torch import nn

from models.check import check_network, describe_error


def is_factory(arch: str) -> bool:
    """Whether `arch` is written as MODULE:FACTORY, two Python names, each perhaps with dots."""
    parts = arch.replace(":", ".").split(".")
    return arch.count(":") == 1 and all(part.isidentifier() for part in parts)


def build_from_factory(
    arch: str, num_classes: int, color_channel: int, image_size: int
) -> nn.Module:
    """The network that the factory called `arch` makes, checked.

    Its module is looked for in the current folder first, and then among those installed. It is
    called with `num_classes` and, where its signature names them, `color_channel` and `image_size`.
    Raises ValueError when it cannot be found, raises an error, or makes a network that
    `check_network` refuses.
    """
    arguments = {"color_channel": color_channel, "image_size": image_size}
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        factory = _find(*arch.split(":"))
        named = inspect.signature(factory).parameters
        arguments = {name: value for name, value in arguments.items() if name in named}
        try:
            model = factory(num_classes=num_classes, **arguments)
        except (Exception, SystemExit) as error:
            raise ValueError(f"fails with {describe_error(error)}") from error
    finally:
        sys.path.remove(folder)
    check_network(model, num_classes, color_channel, image_size)
    return model


def _find(module: str, name: str) -> Callable[..., nn.Module]:
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ValueError(
                f"there is no module {missing} in the current folder, and none is installed"
            ) from None
        raise ValueError(f"importing {module} fails with {describe_error(error)}") from error
    factory = reduce(lambda place, part: getattr(place, part, None), name.split("."), found)
    if not callable(factory):
        where = getattr(found, "__file__", None) or module
        raise ValueError(f"{where} has nothing called {name} that can be called")
    return factory
