"""The proxy: its runs, its choice of a strength, and CrAM+'s gradient."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments import methods, proxy
from experiments.proxy import Run
from utils.process.locks import run_lock


@pytest.fixture
def small(tmp_path, monkeypatch):
    """CIFAR-10 of 80 images and a proxy of two epochs; returns the data's folder."""
    for name, value in dict(
        WIDTH=2,
        EPOCHS=2,
        BATCH_SIZE=16,
        TRAIN_IMAGES=48,
        HELD_OUT_IMAGES=16,
        SEEDS=(0, 1),
        CALIBRATION_IMAGES=16,
        PRECISION="fp32",
    ).items():
        monkeypatch.setattr(proxy, name, value)
    draw = np.random.default_rng(0).integers
    images = {
        f"x_{s}": draw(256, size=(n, 32, 32, 3), dtype=np.uint8)
        for s, n in (("train", 64), ("test", 16))
    }
    labels = {f"y_{s}": np.arange(n) % 10 for s, n in (("train", 64), ("test", 16))}
    np.savez(tmp_path / "cifar10.npz", **images, **labels)
    return tmp_path


def test_held_out_images_are_not_trained_on(small):
    held_out, tested = (proxy.load_data(small, held_out) for held_out in (True, False))
    whole = np.load(small / "cifar10.npz")
    expected = whole["x_train"].transpose(0, 3, 1, 2)
    assert np.array_equal(tested.train_images.numpy(), expected[:48])
    assert np.array_equal(held_out.test_images.numpy(), expected[-16:])
    assert np.array_equal(held_out.train_images.numpy(), expected[:48])


@pytest.mark.parametrize("method", ["SFW L2", "CrAM+ equal epochs"])
def test_a_run_is_repeated_bit_for_bit_and_read_where_it_is_finished(method, small, monkeypatch):
    runs = [Run(method, 5e-3, 1, small / name) for name in ("one", "other")]
    data = proxy.load_data(small, held_out=False)
    one, other = (proxy.train(run, data).state_dict() for run in runs)
    monkeypatch.setattr(proxy, "autocast", None)
    again = proxy.train(runs[0], data).state_dict()
    assert all(
        torch.equal(values, other[n]) and torch.equal(values, again[n]) for n, values in one.items()
    )


def test_a_run_of_another_process_is_waited_for(small, monkeypatch):
    mine, theirs = (Run("SGD", 5e-3, seed, small) for seed in (0, 1))
    measured, waits = [], []
    lock = run_lock(theirs.model.with_suffix(".lock"))
    lock.__enter__()

    def measure(run, images, data_dir):
        measured.append((run, images, len(waits)))
        run.result(images).parent.mkdir(parents=True, exist_ok=True)
        run.result(images).touch()

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # the other process has been stopped
            lock.__exit__(None, None, None)

    monkeypatch.setattr(proxy, "measure", measure)
    monkeypatch.setattr(proxy.time, "sleep", sleep)
    proxy.measure_all([theirs, mine], "test", small)
    assert measured == [(mine, "test", 0), (theirs, "test", 2)]


@pytest.mark.parametrize(
    ("column", "best", "name", "judged", "tested"),
    [
        ("recalibrated", 2e-3, "proxy", "50.0", "51.0 (50.0 to 52.0)"),
        ("as pruned", 1e-2, "proxy_as_pruned", "30.0", "31.0 (30.0 to 32.0)"),
    ],
)
def test_finished_runs_are_summed_up_without_training(
    column, best, name, judged, tested, tmp_path, capsys
):
    for strength in proxy.METHODS["SGD"].strengths:
        of_best = proxy.SEEDS if strength == best else []
        for images, seeds in (("held_out", [0]), ("test", of_best), ("patterns", of_best)):
            for seed in seeds:
                row = {2e-3: [20, 50 + seed], 1e-2: [30 + seed, 40]}.get(strength, [10, 40])
                of_patterns = images == "patterns"
                scopes = ["N:M"] if of_patterns else proxy.SCOPES
                rows = dict.fromkeys(map(str, proxy.PATTERNS if of_patterns else proxy.SHOWN), row)
                path = Run("SGD", strength, seed, tmp_path).result(images)
                path.parent.mkdir(parents=True, exist_ok=True)
                known = {"method": "SGD", "strength": strength, "seed": seed}
                known["images"] = "test" if of_patterns else images
                path.write_text(json.dumps(known | {"accuracies": dict.fromkeys(scopes, rows)}))
    flags = f"--methods SGD --output_dir {tmp_path} --data_dir {tmp_path}"
    assert proxy.main([*flags.split(), "--tuned_for", column]) == 0
    folder = tmp_path / "saved_logs" / "proxy"
    table = (folder / f"{name}.md").read_text()
    assert f"**{best:g}: {judged}**" in table
    assert table.count(f"| SGD, weight decay {best:g} | {tested} |") == 3
    assert "| removed | dense | 2:4 | 4:8 | 1:4 | repeatable |" in table
    out = capsys.readouterr().out
    for scope in (*proxy.SCOPES, "N-M"):
        picture = folder / f"{name}_{scope}.png"
        assert picture.name in out
        assert picture.is_file()


def test_cram_plus_is_the_dense_gradient_plus_the_pruned_ones_on_what_is_kept():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    inputs, targets = torch.randn(8, 6), torch.arange(8) % 3
    before = [p.detach().clone() for p in model.parameters()]

    def gradient_at(weights):
        leaves = [w.clone().requires_grad_() for w in weights]
        state = dict(zip(dict(model.named_parameters()), leaves, strict=True))
        loss = F.cross_entropy(torch.func.functional_call(model, state, (inputs,)), targets)
        return torch.autograd.grad(loss, leaves)

    dense = gradient_at(before)
    climbed = [w + methods.CRAM_RHO * g for w, g in zip(before, dense, strict=True)]
    magnitudes = torch.cat([w.abs().flatten() for w in climbed if w.dim() > 1])
    threshold = magnitudes.sort().values[len(magnitudes) // 2 - 1]
    masks = [w.abs() > threshold if w.dim() > 1 else torch.ones_like(w) for w in climbed]
    sparse = gradient_at([w * mask for w, mask in zip(climbed, masks, strict=True)])

    methods.cram_plus(model, inputs, targets, 0.5)
    for p, w, g, s, mask in zip(model.parameters(), before, dense, sparse, masks, strict=True):
        assert torch.equal(p, w)
        torch.testing.assert_close(p.grad, g + s * mask)


def test_cram_plus_keeps_the_pruned_pass_out_of_the_running_statistics():
    torch.manual_seed(0)
    inputs, targets = torch.randn(4, 3, 8, 8), torch.arange(4)
    running = []
    for gradient in (methods.gradient, partial(methods.cram_plus, sparsity=0.8)):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
        gradient(model, inputs, targets)
        running.append((model[1].running_mean.clone(), model[1].running_var.clone()))
        assert model[1].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(*running, strict=True))


def test_pruned_steps_are_every_second_one_of_the_last_third_at_one_sparsity():
    method = methods.Method({}, (1.0,), sparsities=(0.5,))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    inputs, targets = torch.randn(8, 6), torch.arange(8) % 3
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    magnitudes = torch.cat([w.abs().flatten() for w in before.values() if w.dim() > 1])
    threshold = magnitudes.sort().values[len(magnitudes) // 2 - 1]
    masks = {n: (w.abs() > threshold) | torch.tensor(w.dim() < 2) for n, w in before.items()}
    leaves = {n: (w * masks[n]).requires_grad_() for n, w in before.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, leaves, (inputs,)), targets)
    at_pruned = torch.autograd.grad(loss, list(leaves.values()))
    dense = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    for step in range(12):
        methods.gradient(model, inputs, targets, method.sparsity(step, 12))
        gradients = {n: p.grad for n, p in model.named_parameters()}
        for (name, w), d, g in zip(before.items(), dense, at_pruned, strict=True):
            assert torch.equal(model.get_parameter(name), w)
            expected = g * masks[name] if step in (9, 11) else d
            torch.testing.assert_close(gradients[name], expected)
