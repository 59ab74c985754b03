"""What PyTorch's generic tests ask of every optimizer, asked of SFW and ProjectedSGD.

`optims` of torch.testing._internal.common_optimizers makes a test of each of the INFOS; the error
inputs are PyTorch's for all optimizers, and some of ours. Run by test_generic.py in a process of
its own: importing that module changes global settings.
"""

import io
import unittest
from copy import deepcopy

import torch
from optimizer_infos import INFOS
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optims,
)
from torch.testing._internal.common_utils import TestCase, parametrize

METHODS_WITH_HOOKS = ("step", "state_dict", "load_state_dict")


def every_input(device, dtype, info):
    return _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, info)


def problem(device, dtype, contiguous=True):
    """Weights, and a function of an optimizer that sets their gradients and gives the loss."""
    if contiguous:
        params = nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10))
    else:
        wide = torch.randn(10, 5, 2), torch.randn(10, 2)
        params = tuple(nn.Parameter(values.to(device, dtype)[..., 0]) for values in wide)
    x = torch.randn(5, device=device, dtype=dtype)

    def closure(optimizer):
        optimizer.zero_grad()
        loss = (params[0].mv(x) + params[1]).square().sum()
        loss.backward()
        return loss

    return list(params), closure


def optimized_problems(device, dtype, info):
    """For each input of the optimizer: its options, the problem's weights and closure, and it."""
    for given in every_input(device, dtype, info):
        params, closure = problem(device, dtype)
        yield given.kwargs, params, closure, info.optim_cls(params, **deepcopy(given.kwargs))


def run(optimizer, closure, steps):
    for _ in range(steps):
        closure(optimizer)
        optimizer.step()


class TestGeneric(TestCase):
    @optims(INFOS)
    def test_errors(self, device, dtype, optim_info):
        for case in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given, kind, regex = case.optimizer_error_input, case.error_type, case.error_regex
            self.assertIs(case.error_on, OptimizerErrorEnum.CONSTRUCTION_ERROR)
            warns = issubclass(kind, Warning)
            expect = self.assertWarnsRegex if warns else self.assertRaisesRegex
            with expect(kind, regex):
                optim_info.optim_cls(given.params, **given.kwargs)

    @parametrize("contiguous", [True, False])
    @parametrize("with_schedulers", [True, False])
    @optims(INFOS)
    def test_goes_in_the_right_direction(
        self, device, dtype, optim_info, contiguous, with_schedulers
    ):
        for given in optim_info.optim_inputs_func(device=device):
            for makers in optim_info.scheduler_inputs[-1:] if with_schedulers else [[]]:
                params, closure = problem(device, dtype, contiguous)
                optimizer = optim_info.optim_cls(params, **deepcopy(given.kwargs))
                schedulers = [make(optimizer) for make in makers]
                before = closure(optimizer).item()
                for _ in range(20):
                    loss = optimizer.step(lambda: closure(optimizer))  # noqa: B023
                    for scheduler in schedulers:
                        plateau = isinstance(scheduler, ReduceLROnPlateau)
                        scheduler.step(loss) if plateau else scheduler.step()
                after = closure(optimizer).item()
                compare = self.assertGreater if given.kwargs.get("maximize") else self.assertLess
                compare(after, before, str(given))

    @optims(INFOS)
    def test_groups_have_options_of_their_own(self, device, dtype, optim_info):
        for given in every_input(device, dtype, optim_info):
            (w, b), closure = problem(device, dtype)
            start = b.detach().clone()
            groups = [{"params": [w], **deepcopy(given.kwargs)}, {"params": [b]}]
            optimizer = optim_info.optim_cls(groups, lr=1e-28)
            before = closure(optimizer).item()
            run(optimizer, closure, 20)
            compare = self.assertGreater if given.kwargs.get("maximize") else self.assertLess
            compare(closure(optimizer).item(), before, str(given))
            self.assertEqual(b, start)

    @optims(INFOS)
    def test_a_saved_state_equals_the_one_read_back(self, device, dtype, optim_info):
        for _, _, closure, optimizer in optimized_problems(device, dtype, optim_info):
            run(optimizer, closure, 2)
            with io.BytesIO() as file:
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                self.assertEqual(torch.load(file, weights_only=True), optimizer.state_dict())

    @parametrize("named", [(True, False), (False, True), (True, True)])
    @optims(INFOS)
    def test_states_with_and_without_names_load_into_each_other(
        self, device, dtype, optim_info, named
    ):
        params, closure = problem(device, dtype)
        names = list(zip(("weight", "bias"), params, strict=True))
        first, second = (
            optim_info.optim_cls(names if with_names else params, lr=0.01) for with_names in named
        )
        run(first, closure, 2)
        second.load_state_dict(first.state_dict())
        run(second, closure, 1)
        self.assertEqual("param_names" in second.param_groups[0], any(named))

    @parametrize("gradient", [None, 0.0])
    @optims(INFOS)
    def test_steps_without_gradients_do_nothing(self, device, dtype, optim_info, gradient):
        for given in every_input(device, dtype, optim_info):
            if given.kwargs.get("rescale", "gradient") != "gradient" or (
                gradient is not None and "weight_decay" in given.kwargs
            ):
                continue  # these move by lr towards the origin, or decay
            p = nn.Parameter(torch.randn(2, 3) / 10)
            start = p.detach().clone()
            optimizer = optim_info.optim_cls([p], **deepcopy(given.kwargs))
            for _ in range(2):
                p.grad = None if gradient is None else torch.zeros_like(p)
                optimizer.step()
            self.assertEqual(p, start)

    @optims(INFOS)
    def test_it_can_be_printed_and_copied(self, device, dtype, optim_info):
        for _, _, closure, optimizer in optimized_problems(device, dtype, optim_info):
            run(optimizer, closure, 1)
            self.assertIn("constraints: [KSparsePolytope(n=50", repr(optimizer))
            public, copied = (
                {name for name in vars(x) if not name.startswith("_")}
                for x in (optimizer, deepcopy(optimizer))
            )
            self.assertEqual(public, copied)

    @optims(INFOS)
    def test_hooks_are_called(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer, calls = optim_info.optim_cls(params, lr=0.01), []

        def note(name):
            def hook(*_):
                calls.append(name)

            return hook

        names = [f"{of}_{when}" for of in METHODS_WITH_HOOKS for when in ("pre", "post")]
        for name in names:
            getattr(optimizer, f"register_{name}_hook")(note(name))
        run(optimizer, closure, 1)
        optimizer.load_state_dict(optimizer.state_dict())
        self.assertEqual(calls, names)

    @optims(INFOS)
    def test_a_state_dict_hook_may_change_what_is_given(self, device, dtype, optim_info):
        params, closure = problem(device, dtype)
        optimizer = optim_info.optim_cls(params, lr=0.01)
        run(optimizer, closure, 1)
        optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 3})
        self.assertEqual(optimizer.state_dict()["note"], 3)


instantiate_device_type_tests(TestGeneric, globals(), only_for="cpu")

if __name__ == "__main__":
    unittest.main()
