"""What stands above and below pictures: words for people, and all settings."""

from utils.checkpoints.trained_model import TrainedModel
from utils.reports.headings import heading, heading_of
from utils.settings.config import Config
from utils.settings.fields import identifying_settings


def training(**settings):
    return identifying_settings(Config(**settings))


def test_a_title_has_network_data_method_and_what_is_not_a_default():
    assert heading(training()).title == "ResNet18 on CIFAR-10: SFW, K-sparse polytope"
    settings = training(data="mnist", arch="Mlp", epoch_num=20, tau=5.0, sfw_init=1)
    assert heading(settings, {"allocation": "lamp"}, ["etc."]).title == (
        "Mlp on MNIST: SFW, K-sparse polytope, 20 epochs, tau 5, SFW-Init, allocation lamp, etc."
    )


def test_the_settings_below_are_complete():
    settings = training(tau=5.0)
    below = heading(settings, {"allocation": "lamp"}).settings.replace("\u00a0", " ").split(",  ")
    assert "tau 5" in below and "momentum 0.9" in below and "allocation lamp" in below
    assert len(below) == len(settings) + 1


def test_what_differs_between_runs_is_left_out():
    assert heading({"momentum": "0.9"}).title == "several networks on several data sets"
    common = {
        "arch": "Mlp",
        "optimizer": "SGD",
        "lr": "0.1",
        "tau": "5",
    }  # the rate is SGD's default
    assert heading(common).title == "Mlp on several data sets: SGD, tau 5"


def test_all_prunings_of_a_model_are_in_its_title():
    config = Config()
    first = {"sparsity": 0.5, "granularity": "channels"}
    before = {"sparsity": 0.9, "granularity": "weights", "pruned_before": first}
    trained = TrainedModel(None, config, config.files, "a.pt", identifying_settings(config), before)
    assert heading_of(trained).title.endswith("sliced before by 50%, pruned before to 90%")
