"""What optimizers over feasible regions have in common: a region for each parameter, and state."""

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from constraints import Region
from constraints.sharding import assign, is_sharded, refuse_unknown, whole
from optim.uncompiled import PlainOptimizer, not_compiled

# Radii with a smaller relative difference count as equal: they are computed from initial norms,
# which other machines round differently.
RADIUS_TOLERANCE = 1e-5


@dataclass(slots=True)
class TensorStep:
    """One parameter's part in a step.

    `theta` is what moves: the parameter, or its float32 copy if the parameter has fewer digits.
    `gradient`, whose sign is such that the step descends, and `momentum_buffer` have the shape and
    type of `theta`. `momentum` is 0 at the parameter's first step, so that the buffer becomes the
    gradient, and the group's value after that. `group` holds the other options.
    """

    param: Tensor
    theta: Tensor
    gradient: Tensor
    momentum_buffer: Tensor
    momentum: float
    region: Region
    group: dict[str, Any]
    alpha: float | Tensor | None = None  # of SFW, once the step is taken

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.theta, self.gradient, self.momentum_buffer


class ConstrainedOptimizer(PlainOptimizer):
    """A torch.optim.Optimizer with a region for each parameter.

    `params` is what any PyTorch optimizer takes, tensors or groups of them; `constraints` holds
    their regions in the same order. A group keeps its regions as "constraints", beside "params".
    Raises ValueError when their numbers or sizes differ.

    - A parameter's first step is the first one with a learning rate other than 0. Before that, a
      step only creates the state: torch.distributed.checkpoint takes a step with learning rate 0
      to read it. "step" in the state counts the steps; replays of a CUDA graph do not advance it.
    - Parameters of half precision have a float32 copy in the state. The steps move the copy, which
      is then rounded to the parameter. Without it, small steps would be lost and the iterates would
      leave their region. Momentum buffers are float32, too. If other code has changed the
      parameter, the copy takes the new values.
    - A gradient that is infinite or NaN turns its whole parameter into NaN, which shows the problem
      without waiting for the device. `torch.amp.GradScaler` skips such steps.
    - A parameter that is unfrozen later may be outside its region: call `make_feasible` then.
    - Complex parameters and sparse gradients are refused.
    - Parameters may be sharded: DTensors of FSDP2 or of tensor parallelism. Each process gathers
      one at a time, takes its step and keeps its own part. All processes must take a step together,
      with gradients for the same parameters.

    `state_dict()` holds the optimizer's kind and each region's kind and sizes. `load_state_dict`
    raises ValueError for a state of another optimizer or of other regions, and, where both have
    names (`named_parameters()`), of parameters in another order.
    """

    kind: str  # by which a state dict names the optimizer, also those of classes derived from it
    _unbound: Iterator[Region] = iter(())  # during __init__, the regions that are not in a group

    def __init__(
        self, params: Iterable[Any], constraints: Sequence[Region], defaults: dict[str, Any]
    ) -> None:
        self._check_options(defaults)
        self._unbound = iter(constraints)
        super().__init__(params, defaults | {"optimizer": self.kind})
        bound = sum(len(group["params"]) for group in self.param_groups)
        if left := list(self._unbound):
            raise ValueError(f"{bound + len(left)} constraints were given for {bound} parameters")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """load_state_dict calls this with what it has read."""
        present = self.__dict__.get("param_groups")  # None while unpickling
        if present is not None:
            for i, (group, ours) in enumerate(zip(state["param_groups"], present, strict=True)):
                _check_fits(group, ours, i)
                group["constraints"] = ours["constraints"]
        super().__setstate__(state)

    @not_compiled
    def state_dict(self) -> dict[str, Any]:
        """As in PyTorch; "constraints" of a group describes each region in plain types."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["constraints"] = [region.describe() for region in group["constraints"]]
        return state

    @not_compiled
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in PyTorch, but the state of half-precision parameters stays float32.

        Raises ValueError, with nothing loaded, if the state is not of this optimizer: see above.
        """
        final: dict[str, Any] = {}  # the state dict after all other hooks have changed it
        with self.register_load_state_dict_pre_hook(lambda _, loaded: final.update(loaded)):
            super().load_state_dict(state_dict)
        keys = itertools.chain.from_iterable(group["params"] for group in final["param_groups"])
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for key, p in zip(keys, params, strict=True):
            if p.dtype != _working_type(p.dtype) and key in final["state"]:
                for name, value in final["state"][key].items():
                    if isinstance(value, Tensor):
                        self.state[p][name] = value.to(p.device)

    @not_compiled
    def add_param_group(self, group: dict[str, Any]) -> None:
        """As in PyTorch; in a group added later, "constraints" holds its parameters' regions."""
        first = sum(len(group["params"]) for group in self.param_groups)
        super().add_param_group(dict(group))
        added = self.param_groups[-1]
        try:
            params = added["params"]
            unbound = itertools.islice(self._unbound, len(params))
            own = added["constraints"] = list(added.get("constraints", unbound))
            if len(own) != len(params):
                raise ValueError(f"{len(own)} constraints for {len(params)} parameters")
            refuse_unknown(params)
            for i, (p, region) in enumerate(zip(params, own, strict=True), first):
                if not p.is_floating_point():
                    raise ValueError(f"parameter {i} is {p.dtype}: regions hold real numbers only")
                if region.n != p.numel():
                    raise ValueError(
                        f"constraint {i} has {region.n} entries, its parameter {p.numel()}: the"
                        " constraints must be in the order of the parameters. Groups of parameters"
                        ' may have their own, as "constraints" beside "params"'
                    )
            self._check_options(added)
        except BaseException:
            self.param_groups.pop()
            raise

    def _check_options(self, options: dict[str, Any]) -> None:
        """Raise an error for options of all groups, or of one with its regions, that do not fit."""
        lr, momentum, decay = (options[name] for name in ("lr", "momentum", "weight_decay"))
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr > 0:
            raise ValueError(f"lr must be greater than 0, not {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in 0 <= momentum < 1, not {momentum}")
        if not decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {decay}")

    @not_compiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; returns the closure's loss, if there is one.

        Nothing in a step makes the host wait for the device, unless parameters are sharded. Raises
        RuntimeError, before anything moves, for a sparse gradient and for a parameter whose shape
        has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        steps = [
            self._tensor_step(p, region, group)
            for group in self.param_groups
            for p, region in zip(group["params"], group["constraints"], strict=True)
            if p.grad is not None
        ]
        # Until its first step a parameter stays where it is.
        steps = [s for s in steps if self.state[s.param]["step"] or not _is_zero(s.group["lr"])]
        self._move([s for s in steps if s.theta.numel()])
        for s in steps:
            self.state[s.param]["step"] += 1
            if s.theta is not s.param:
                s.param.copy_(s.theta)
        return loss

    def _move(self, steps: Sequence[TensorStep]) -> None:
        """Take the steps: all on plain tensors together, then one by one what is sharded."""
        self._take([s for s in steps if not is_sharded(s.theta)])
        for s in [s for s in steps if is_sharded(s.theta)]:
            theta, gradient, m = map(whole, s.tensors)
            gathered = replace(s, theta=theta, gradient=gradient, momentum_buffer=m)
            self._take([gathered])
            assign(s.theta, theta)
            assign(s.momentum_buffer, m)
            s.alpha = gathered.alpha

    @abstractmethod
    def _take(self, steps: Sequence[TensorStep]) -> None:
        """Advance each momentum buffer and move each `theta`, plain tensors, in place."""

    def _tensor_step(self, p: Tensor, region: Region, group: dict[str, Any]) -> TensorStep:
        """The step to take on `p`. Creates its state, or converts it to the current type of `p`."""
        gradient, state, dtype = p.grad, self.state[p], _working_type(p.dtype)
        if gradient.layout != torch.strided:
            raise RuntimeError(
                f"{type(self).__name__} needs dense gradients, not {gradient.layout}"
            )
        if "momentum_buffer" not in state:
            state["step"] = 0
            state["momentum_buffer"] = torch.zeros_like(p, dtype=dtype)
        m, theta = state["momentum_buffer"], p
        if p.dtype != dtype:
            theta = state.setdefault("master_param", p.to(dtype))
        if not p.shape == gradient.shape == m.shape == theta.shape or p.numel() != region.n:
            raise RuntimeError(
                f"a parameter of shape {tuple(p.shape)} has a gradient of shape"
                f" {tuple(gradient.shape)}, state of shape {tuple(m.shape)} and a constraint of"
                f" {region.n} entries: they must agree"
            )
        if not is_sharded(p) == is_sharded(gradient) == is_sharded(m):
            raise RuntimeError(
                "a parameter, its gradient and its momentum buffer must all be DTensors: load the"
                " state with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
            )
        m = state["momentum_buffer"] = _laid_out_like(p, m, dtype)
        if theta is not p:
            theta = state["master_param"] = _laid_out_like(p, theta, dtype)
            theta.copy_(torch.where(theta.to(p.dtype) == p, theta, p))
        if gradient.dtype != dtype:
            gradient = gradient.to(dtype)
        if gradient.is_neg():
            gradient = gradient.resolve_neg()  # fused steps read it by its address
        if group["maximize"]:
            gradient = -gradient
        momentum = group["momentum"] if state["step"] else 0.0
        if state["step"] and momentum == 0:
            m.zero_()  # it may have NaN, and 0 times NaN is NaN
        return TensorStep(p, theta, gradient, m, momentum, region, group)


def _laid_out_like(p: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` of this type, in the memory format of `p`, which fused steps need."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if is_sharded(p) or x.stride() == p.stride():
        return x
    copy = torch.empty_like(p, dtype=dtype).copy_(x)
    return copy if copy.stride() == p.stride() else x  # parameters with gaps in memory


def channels_last(x: Tensor) -> tuple[int, int] | None:
    """The memory format: for channels-last, the number of channels and of entries in one of them.

    The entries are those of one channel of one sample. (1, 1) if x is contiguous; None if x is in
    neither format.
    """
    if x.layout != torch.strided:
        return None
    if x.is_contiguous():
        return 1, 1
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return x.shape[1], x[0, 0].numel()
    return None


@functools.cache
def _working_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which steps on parameters are computed: their own, but at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _is_zero(lr: float | Tensor) -> bool:
    """Whether the learning rate is 0, as far as that is known without waiting for a device."""
    return (not isinstance(lr, Tensor) or lr.is_cpu) and float(lr) == 0


def _check_fits(saved: dict[str, Any], ours: dict[str, Any], number: int) -> None:
    """Raise ValueError if a loaded group is of another optimizer, other parameters or regions."""
    if saved.get("optimizer") != ours["optimizer"]:
        options = ", ".join(sorted(saved.keys() - {"params", "param_names"}))
        theirs = saved.get("optimizer", f"an optimizer with the options {options}")
        raise ValueError(f"the state is not of {ours['optimizer']} but of {theirs}")
    names = zip(saved.get("param_names", ()), ours.get("param_names", ()), strict=False)
    for i, (theirs, own) in enumerate(names):
        if theirs != own:
            raise ValueError(
                f"the state is of other parameters, or of these in another order: parameter {i} of"
                f" group {number} is {theirs!r} there and {own!r} here"
            )
    regions = zip(saved["constraints"], ours["constraints"], strict=True)
    for i, (theirs, region) in enumerate(regions):
        own = region.describe()
        alike = {**theirs, "radius": 0} == {**own, "radius": 0}
        if not (alike and math.isclose(theirs["radius"], own["radius"], rel_tol=RADIUS_TOLERANCE)):
            raise ValueError(
                f"the state is of other regions: constraint {i} of group {number} is {theirs} there"
                f" and {own} here"
            )
