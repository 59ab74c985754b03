"""The widths of sliced networks: how their layers differ from those that the code builds."""

from collections.abc import Mapping

from torch import Tensor, nn

# By layer, its attributes that state sizes, such as out_channels, where these are not as built.
Widths = dict[str, dict[str, int | list[int]]]


def widths_of(model: nn.Module, built: nn.Module) -> Widths:
    """The widths of `model`; `built` is a network of the same code, as it is built."""
    layers, widths = dict(built.named_modules()), {}
    shapes = [[t.shape for t in (*m.parameters(), *m.buffers())] for m in (model, built)]
    if shapes[0] == shapes[1]:
        return {}  # it is not sliced: a number that differs is something that a layer counts
    for name, layer in model.named_modules():
        before = _sizes(layers[name])
        changed = {k: size for k, size in _sizes(layer).items() if size != before.get(k, size)}
        widths |= {name: changed} if changed else {}
    return widths


def set_widths(model: nn.Module, widths: Widths, state: Mapping[str, Tensor]) -> None:
    """Make the layers of `model`, as it is built, as wide as those of a sliced network.

    `state` is that network's state dict, whose tensors must be loaded afterwards. Raises
    AttributeError where `model` has no such layer.
    """
    for name, sizes in widths.items():
        layer = model.get_submodule(name)
        for key, size in sizes.items():
            setattr(layer, key, type(getattr(layer, key))(size))
    for name, values in model.state_dict(keep_vars=True).items():
        if name in state and values.shape != state[name].shape:
            values.data = values.new_empty(state[name].shape)


def _sizes(layer: nn.Module) -> dict[str, int | list[int]]:
    """The attributes of a layer that are whole numbers or several, as JSON holds them."""
    sizes = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in vars(layer).items()}
    return {
        key: size
        for key, size in sizes.items()
        if all(type(one) is int for one in (size if isinstance(size, list) else [size]))
    }
