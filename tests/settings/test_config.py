"""Settings: names, defaults, and which combinations are refused."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import ROOT

from constraints import CONSTRAINTS, MODES
from models import ARCHITECTURES
from optim import LR_SCHEMES, RESCALES
from utils.datasets import DATASETS
from utils.datasets.augment import AUGMENTATIONS
from utils.process.errors import UserError
from utils.settings.config import Config, with_own_data
from utils.settings.names import file_name, shown

# What changes the trained weights, over what the command line takes.
SETTINGS = {
    "data": st.sampled_from(list(DATASETS)),
    "arch": st.sampled_from(list(ARCHITECTURES)),
    "lr": st.floats(1e-300, 1e9),
    "lr_scheme": st.sampled_from(list(LR_SCHEMES)),
    "warmup_steps": st.integers(0, 2**31 - 1),
    "momentum": st.floats(0, 1, exclude_max=True),
    "weight_decay": st.floats(0, 1e9),
    "k_sparseness": st.integers(1, 2**31 - 1),
    "k_frac": st.floats(0, 1, exclude_min=True),
    "tau": st.floats(1e-300, 1e9),
    "mode": st.sampled_from([mode for mode in MODES if mode]),
    "rescale": st.sampled_from(list(RESCALES)),
    "train_batchsize": st.integers(1, 2**31 - 1),
    "epoch_num": st.integers(1, 2**31 - 1),
    "color_channel": st.sampled_from([1, 3]),
    "augment": st.sampled_from(list(AUGMENTATIONS)),
    "sfw_init_iters": st.integers(1, 2**31 - 1),
    "seed": st.integers(0, 2**31 - 1),
    "precision": st.sampled_from(["fp32", "bf16"]),
}
# With a region: without one SGD refuses the size of one.
SGD = st.fixed_dictionaries(
    {"optimizer": st.just("SGD"), "constraint": st.sampled_from(list(CONSTRAINTS))},
    optional=SETTINGS,
)


@given(SGD)
def test_names_are_short_readable_and_safe(settings):
    name = Config(**settings).run_name
    assert len(name.encode()) < 200
    assert name.startswith(f"data={settings.get('data', 'cifar10')}_model=")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789=._+-")


@given(SGD, SGD)
def test_two_settings_share_a_name_only_if_they_are_the_same(a, b):
    a, b = Config(**a), Config(**b)
    assert (a.run_name == b.run_name) == (a == b)


@given(SGD, st.data())
def test_changing_one_setting_changes_the_name(settings, data):
    key = data.draw(st.sampled_from(sorted(SETTINGS)))
    a, b = Config(**settings), Config(**settings | {key: data.draw(SETTINGS[key])})
    assert (a.run_name == b.run_name) == (getattr(a, key) == getattr(b, key))


@pytest.mark.parametrize("start", ["run", "data=" + 60 * "long", 200 * "é"])
def test_what_is_added_to_a_name_stays_though_it_is_long(start):
    added = dict(allocation="uniform", prune_scope="weights", bn_recalibrate=2**31 - 1)
    end = "_allocation=uniform_prune_scope=weights_bn_recalibrate=2147483647"
    name = file_name(added, start)
    assert name.endswith(end) and len(name.encode()) <= 184
    assert file_name(added, f"{start}2") != name


def test_names_with_every_setting_of_pruning_are_short_and_distinct():
    settings = dict(granularity="channels", round_to=8, channel_score="l2", allocation="uniform")
    settings |= dict(bn_recalibrate=1000, corrected_only=True, test_precision="bf16")
    names = [file_name(settings | {"ratios": (r, 0.25, 0.5, 0.625, 0.75)}, "run") for r in (0, 0.1)]
    assert max(len(name) for name in names) <= 184 and len(set(names)) == 2


def test_long_lists_of_ratios_have_short_and_distinct_names():
    lists = [tuple(i / n for i in range(n)) for n in (2, 5, 40, 50)]
    names = [file_name({"ratios": ratios}, "run") for ratios in lists]
    assert names[:2] == ["run_ratios=0,0.5", "run_ratios=0,0.2,0.4,0.6,0.8"]
    assert len(set(names)) == 4 and max(map(len, names)) <= 60


def test_defaults_are_the_papers():
    config = Config()
    assert config.run_name == "data=cifar10_model=ResNet18_optimizer=SFW"
    assert (config.lr, config.momentum, config.tau, config.k_frac) == (1.0, 0.9, 15.0, 0.05)
    assert (config.k_sparseness, config.epoch_num, config.train_batchsize) == (10, 180, 128)
    assert (config.lr_scheme, config.mode, config.rescale) == (
        "dynamic_change",
        "initialization",
        "gradient",
    )
    assert (config.weight_decay, config.sfw_init, config.gpu) == (0, 0, -1)


def test_names_of_ordinary_runs_have_less_than_120_bytes():
    settings = dict(epoch_num=20, lr_scheme="cosine", pruned_steps=0.33)
    sgd = Config(optimizer="SGD", weight_decay=0.01, **settings)
    assert len(sgd.files.prune_test(".csv").name) < 120


def test_each_optimizer_has_its_own_default_learning_rate():
    assert Config(optimizer="SFW").lr == 1.0
    assert Config(optimizer="SGD").lr == 0.1
    assert Config(optimizer="SGD", lr=1.0).lr == 1.0
    assert Config(optimizer="SGD").as_dict()["lr"] == 0.1  # what a model file holds


def test_a_name_leaves_out_the_default_learning_rate_of_each_optimizer_and_shows_others():
    sgd = "data=cifar10_model=ResNet18_optimizer=SGD"
    assert Config(optimizer="SGD").run_name == Config(optimizer="SGD", lr=0.1).run_name == sgd
    assert Config(optimizer="SGD", lr=1.0).run_name == f"{sgd}_lr=1"
    assert Config(lr=1.0).run_name == Config().run_name
    assert Config(lr=0.1).run_name == f"{Config().run_name}_lr=0.1"


PLAIN_SGD = [
    {},
    {"mode": None},
    {"constraint": "unconstraints"},
    {"constraint": "unconstraints", "mode": None},
    {"constraint": "unconstraints", "mode": "radius"},
]


@pytest.mark.parametrize("flags", PLAIN_SGD, ids=str)
def test_sgd_without_a_region_is_one_run_however_it_is_written(flags):
    assert Config(optimizer="SGD", **flags) == Config(optimizer="SGD")
    assert Config(optimizer="SGD", **flags).mode is None


@pytest.mark.parametrize("size", [{"tau": 3.0}, {"k_frac": 0.1}, {"mode": "radius"}], ids=str)
def test_the_size_of_a_region_is_refused_where_sgd_has_none(size):
    with pytest.raises(UserError, match=f"--{next(iter(size))} .* SGD has none unless --constrain"):
        Config(optimizer="SGD", **size)
    Config(optimizer="SGD", constraint="l2_constraints", **size)


@pytest.mark.parametrize("name", ["constraint", "lr_scheme"])
def test_a_file_may_name_what_is_in_no_table_here_but_no_other_folder(name):
    assert f"{name}=my box" in Config(**{name: "my box"}, from_file=True).run_name
    for settings in ({name: "my box"}, {name: "../box", "from_file": True}):
        with pytest.raises(UserError, match=f"--{name} .*box: choose one of"):
            Config(**settings)


def test_where_a_run_is_kept_and_tested_does_not_change_its_name():
    other = Config(test_batchsize=7, data_dir="d", output_dir="o", color_channel=3)
    assert other.run_name == Config().run_name


def test_another_image_size_is_in_the_name_and_the_networks_own_is_not():
    assert Config(image_size=32).run_name == Config().run_name
    assert Config(image_size=48).run_name == Config().run_name + "_image_size=48"
    tiny = Config(data="tiny", arch="Mlp")
    assert tiny.image_size == 32
    assert Config(data="tiny", arch="Mlp", image_size=64).run_name != tiny.run_name


def test_a_size_that_the_network_does_not_take_is_refused():
    with pytest.raises(UserError, match="--image_size 48: VGG16 takes images of 32"):
        Config(arch="VGG16", image_size=48)


def test_data_are_in_the_repository_unless_another_folder_is_given(
    tmp_path, monkeypatch, write_npz
):
    monkeypatch.chdir(tmp_path)
    assert Config().data_dir == ROOT / "data"
    write_npz(tmp_path / "own", "mnist")
    for folder in ("own", tmp_path / "own"):
        assert len(Config(data="mnist", data_dir=folder).load_dataset().train_labels) == 40


def test_settings_read_no_data_until_they_are_told_to(tmp_path, write_npz):
    write_npz(tmp_path, "mnist").rename(tmp_path / "mine.npz")
    settings = {"data": "mine", "data_dir": tmp_path, "epoch_num": 3}
    with pytest.raises(UserError, match="own_data: describes no data set"):
        Config(**settings)
    assert Config(**with_own_data(settings)).num_classes == 10
    with pytest.raises(UserError, match="--epoch_num 0: must be"):  # before the data are looked for
        with_own_data({"data": "nowhere", "epoch_num": 0})


def test_a_model_file_names_no_folders_of_the_machine():
    assert not {"data_dir", "output_dir"} & Config(output_dir=Path("o")).as_dict().keys()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("optimizer", ["SFW", "SGD"])
def test_every_combination_is_accepted_or_refused_by_rule(optimizer, constraint, mode):
    bounded = constraint != "unconstraints"
    legal = (bounded or optimizer == "SGD") and (mode is not None or not bounded)
    for rescale, scheme in itertools.product(RESCALES, LR_SCHEMES):
        settings = dict(optimizer=optimizer, constraint=constraint, mode=mode, rescale=rescale)
        if legal:
            Config(**settings, lr_scheme=scheme)
        else:
            with pytest.raises(UserError, match=r"--constraint|--mode"):
                Config(**settings, lr_scheme=scheme)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0"), (0.29, "29"), (0.995, "99.5"), (0.99999999, "99.999999"), (1e-9, "0.0000001")],
)
def test_percentages_are_not_rounded(fraction, text):
    assert shown(fraction) == f"{text}%"
