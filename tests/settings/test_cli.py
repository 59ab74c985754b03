"""The command line: what was given explicitly, and what --help says."""

import dataclasses

import pytest

from constraints import MODES
from optim import LR_SCHEMES
from utils.process.errors import UserError
from utils.prune.config import PruneConfig
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.settings.fields import setting


def parse(*argv):
    return Parser("", Config, PruneConfig).parse(list(argv))


def test_only_flags_that_were_given_are_explicit():
    flags = parse("--lr", "0.5", "--repair", "9")
    assert dict(flags.explicit) == {"lr": 0.5, "repair": 9}
    assert flags.explicit_settings(Config) == {"lr": 0.5}
    assert flags.settings(Config) == Config(lr=0.5)
    assert flags.settings(PruneConfig) == PruneConfig(repair=9)


def test_a_command_line_without_flags_is_valid():
    assert dict(parse().explicit) == {}


def test_a_flag_given_its_default_is_explicit():
    assert parse("--seed", "0").explicit_settings(Config) == {"seed": 0}


def test_a_ratio_of_minus_0_is_0():
    prune = parse("--ratios", "-0", "0.5", "--save_pruned", "-0").settings(PruneConfig)
    assert (str(prune.ratios), str(prune.save_pruned)) == ("(0.0, 0.5)", "(0.0,)")


def test_a_flag_with_several_values_may_be_given_several_times():
    flags = parse("--save_pruned", "0.9", "--save_pruned", "0.5")
    assert flags.explicit["save_pruned"] == (0.9, 0.5)


def test_settings_of_one_class_are_valid_though_those_of_another_are_not():
    """Settings that contradict each other's defaults may agree with those in a model file."""
    flags = parse("--constraint", "unconstraints", "--repair", "9")
    assert flags.settings(PruneConfig).repair == 9
    assert flags.explicit_settings(Config) == {"constraint": "unconstraints"}
    with pytest.raises(UserError, match="--constraint unconstraints"):
        flags.settings(Config)


def help_of(name):
    (action,) = [a for a in Parser("", Config, PruneConfig)._actions if a.dest == name]
    return action.help


def test_help_explains_every_mode_by_name_in_order():
    text = help_of("mode")
    places = [text.index(f"{mode}: ") for mode in MODES]
    assert places == sorted(places)


def test_help_states_what_momentum_is_for_both_optimizers():
    text = help_of("momentum")
    assert "SFW averages, m = momentum m + (1 - momentum) g" in text
    assert "SGD sums, m = momentum m + g" in text


def test_help_states_the_formula_of_k():
    assert "K = min(max(k_sparseness, floor(k_frac n)), n)" in help_of("k_sparseness")


def test_help_has_the_first_line_of_what_users_add_to_a_table(monkeypatch):
    def thirds(epoch, epochs, steps, losses):
        """Falls to a third, by 66 %.

        More on this.
        """

    monkeypatch.setitem(LR_SCHEMES, "thirds", thirds)
    assert "thirds: Falls to a third, by 66 %% (default" in help_of("lr_scheme")
    assert "keep: " not in help_of("lr_scheme")  # which the text itself explains
    assert Config(lr_scheme="thirds").lr_scheme == "thirds"


def test_help_takes_a_default_with_a_percent_sign():
    """As the folder of the data may have, if the repository is in such a folder."""
    kind = dataclasses.make_dataclass("Kind", [("folder", str, setting("/50%/data", "data", "a"))])
    assert "(default: /50%/data)" in Parser("", kind).format_help()
