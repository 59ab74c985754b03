"""Several runs in one picture and one table."""

import json
import re

import pytest
from runs import DIGITS, assert_refused, read_csv

from utils.checkpoints.trained_model import TrainedModel
from utils.compute.measure import Accuracy
from utils.datasets.own import OwnData
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.prune.weights.ranking import RATIOS
from utils.reports.comparison import comparison_table, heading_of, labels_of, read_curves, read_runs
from utils.reports.report import Report, Result
from utils.settings.config import Config
from utils.settings.fields import OF_TEST, identifying_settings
from utils.settings.names import RunFiles


@pytest.fixture
def table(tmp_path):
    """Writes what test_prune.py would: table(name, accuracy, **settings) gives the table's path.

    Accuracies are in percent, or Accuracy; `corrected` is that after a correction.
    """

    def write(name, accuracy=90.0, prune=None, corrected=None, known=True, before=None, **settings):
        config, prune = Config(**settings), PruneConfig(**(prune or {}))
        files = RunFiles(tmp_path, name)
        training = identifying_settings(config)
        if not known:
            training = {name: training[name] for name in training.keys() & OF_TEST}
        trained = TrainedModel(None, config, files, f"{name}.pt", training, before)
        columns = {"accuracy": accuracy, CORRECTIONS.get(prune.correction): corrected}
        accuracies = {
            column: value if isinstance(value, Accuracy) else Accuracy(value)
            for column, value in columns.items()
            if value is not None
        }
        report = Report(trained, prune)
        measures = {"remaining": 1, "parameters": 2}
        report.results = [Result(r, measures, {"w": 1}, accuracies) for r in prune.all_ratios]
        report.write_tables({"w": 2})
        return report.table

    return write


def labels(*tables):
    return labels_of([read_curves(path, i)[-1] for i, path in enumerate(tables, 1)])


def test_runs_are_labelled_by_what_differs(table):
    sgd = dict(optimizer="SGD", constraint="unconstraints", lr=0.1, mode=None)
    assert labels(table("a", seed=3), table("b", seed=3, tau=5.0)) == ["tau 15", "tau 5"]
    assert labels(table("a"), table("b", **sgd)) == ["SFW", "SGD"]
    l2 = dict(constraint="l2_constraints", weight_decay=0.01)
    assert labels(table("a"), table("b", **sgd), table("c", **l2)) == [
        "SFW, K-sparse polytope",
        "SGD, no region",
        "SFW, L2 ball, weight decay 0.01",
    ]
    assert labels(table("a"), table("b", sfw_init=1)) == ["without SFW-Init", "SFW-Init"]
    pruned = table("c", prune=dict(allocation="lamp", bn_recalibrate=9), corrected=91.0)
    assert labels(table("a", arch="Mlp"), pruned) == [
        "Mlp",
        "ResNet18, allocation lamp",
    ]


def test_runs_in_a_region_that_is_in_no_table_here_are_compared(table):
    own = table("a", constraint="box", from_file=True), table("b")
    assert labels(*own) == ["box", "K-sparse polytope"]


def test_tables_of_channels_are_left_out_of_a_comparison(table, quick, tmp_path):
    weights, channels = table("a"), table("b")
    channels.write_text("ratio,multiply_adds,accuracy\n0,9,90\n")
    status, out, err = quick(
        "test_prune.py", "--compare", weights, channels, "--output_dir", tmp_path
    )
    assert (status, err) == (
        0,
        f"warning: {channels}: is of --granularity channels, and left out\n",
    )
    assert out.count("CIFAR-10, ResNet18") == 1
    status, _, err = quick("test_prune.py", "--compare", channels, "--output_dir", tmp_path)
    assert status == 2 and err.endswith(
        "\nerror: --compare: no table is of --granularity weights; name some that are\n"
    )


def test_a_comparison_is_headed_by_what_its_curves_have_in_common(table):
    lamp = {"allocation": "lamp"}
    paths = table("a", epoch_num=3, prune=lamp), table("b", epoch_num=3, tau=5.0, prune=lamp)
    above = heading_of([curve for path in paths for curve in read_curves(path)])
    assert above.title == "ResNet18 on CIFAR-10: SFW, K-sparse polytope, 3 epochs, allocation lamp"
    assert "tau" not in above.settings and "momentum" in above.settings


def test_what_does_not_change_a_result_is_no_label(table):
    paths = table("a", test_batchsize=7, resume="never"), table("b", tau=5.0, seed=1)
    assert labels(*paths) == ["tau 15", "tau 5"]


def test_runs_that_differ_in_the_seed_alone_share_a_label(table):
    paths = table("a"), table("b", tau=5.0, seed=2), table("c", seed=1)
    assert labels(*paths) == ["tau 15", "tau 5", "tau 15"]
    assert labels(*paths[::2]) == ["CIFAR-10, ResNet18, SFW, K-sparse polytope"] * 2


def test_a_model_that_was_pruned_before_is_no_other_seed_of_a_dense_one(table):
    paths = table("a"), table("b", seed=1, before={"sparsity": 0.9, "accuracy": 80.0})
    assert labels(*paths) == ["CIFAR-10, ResNet18, SFW, K-sparse polytope", "pruned before 0.9"]


def test_runs_on_data_sets_of_one_name_are_no_runs_of_one_method(table):
    known = OwnData(("a", "b"), 1, 4, (0.5,), (0.5,), (2, 2), "").plain()
    own = [dict(data="mine", arch="Mlp", own_data=known | {"sha256": 64 * n}) for n in "12"]
    paths = [table(f"{i}{t}", tau=t, seed=i, **own[i]) for t in (5.0, 6.0) for i in range(2)]
    assert labels(*paths) == [f"tau {t}, data set {8 * n}" for t in (5, 6) for n in "12"]


def test_the_channels_of_a_data_set_are_no_label(table):
    assert labels(table("a", data="mnist"), table("b")) == ["MNIST", "CIFAR-10"]


def test_runs_of_the_same_settings_and_seed_are_told_apart_by_numbers(table):
    paths = table("one"), table("two"), table("three", tau=5.0)
    assert labels(*paths) == ["tau 15 (table 1)", "tau 15 (table 2)", "tau 5"]


def test_a_model_of_unknown_settings_is_labelled_by_the_name_of_its_file(table):
    authors, other = table("authors", known=False), table("other", known=False, precision="bf16")
    assert labels(authors, other) == ["authors", "other"]
    assert labels(authors, table("a", tau=5.0), table("b")) == ["authors", "tau 5", "tau 15"]
    pruned = table("c", known=False, prune=dict(allocation="lamp"))
    assert labels(authors, pruned) == ["authors", "c, allocation lamp"]


def test_one_picture_and_one_table_are_made(quick, table, tmp_path):
    tables = (
        table("a", 91.25),
        table("c", 90, seed=1),
        table("b", 85.5, dict(bn_recalibrate=9), corrected=88.0, tau=5.0),
    )
    status, out, err = quick("test_prune.py", "--compare", *tables, "--output_dir", tmp_path)
    assert (status, err) == (0, "")
    (path,) = (tmp_path / "saved_logs" / "comparison").glob("*.md")
    assert path.read_text() in out
    rows = path.read_text().splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| tau 15, as pruned, 2 runs", "90.62 (90.00 to 91.25)"],
        ["| tau 5, as pruned", "85.50"],
        ["| tau 5, recalibrated", "88.00"],
    ]
    assert path.with_suffix(".png").is_file()
    names = f"picture: {path.stem}.png, table: {path.name}, numbers: {path.stem}.csv"
    assert out.endswith(f"\nResults: {path.parent}/ ({names})\n")
    numbers = read_csv(path.with_suffix(".csv"))
    assert len(numbers) == 4 * len(RATIOS)
    assert list(numbers[-1].values()) == ["tau 5", "recalibrated", "1", "0.99", "88.0", "0"]


def test_labels_title_and_name_are_those_that_are_given(quick, table, tmp_path, monkeypatch):
    tables = [table(f"run{i}", 80 + i, tau=i + 1.0) for i in range(3)]
    drawn = []
    monkeypatch.setattr("utils.reports.comparison.plot_accuracies", lambda *a: drawn.append(a))
    own = ("--labels", "old", "new", "old", "--title", "Old and new", "--name", "mine")
    own += ("--figure_format", "svg", "--output_dir", tmp_path)
    status, out, err = quick("test_prune.py", "--compare", *tables, *own)
    assert (status, err) == (0, "")
    folder = tmp_path / "saved_logs" / "comparison"
    assert sorted(path.name for path in folder.iterdir()) == ["mine.csv", "mine.md"]
    rows = [line for line in out.splitlines() if line.startswith(("| old", "| new"))]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| old, 2 runs", "81.00 (80.00 to 82.00)"],
        ["| new", "81.00"],
    ]
    ((picture, _, heading),) = drawn
    assert picture == folder / "mine.svg"
    assert heading.title == "Old and new" and "momentum" in heading.settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--compare {} {} --labels one", "--labels: there are 1 for 2 tables; give as many"),
        ("--labels one", "--labels: is of a comparison; add --compare, or leave it out"),
    ],
)
def test_labels_that_belong_to_no_tables_are_refused(flags, message, quick, table):
    flags = flags.format(table("a"), table("b")).split()
    assert_refused(quick("test_prune.py", *flags), message)


def test_a_network_is_drawn_once_though_several_tables_have_it(quick, table, tmp_path):
    tables = table("a"), table("b", prune=dict(repair=9), corrected=80.0)
    status, out, _ = quick("test_prune.py", "--compare", *tables, *tables, "--output_dir", tmp_path)
    assert status == 0
    assert len(re.findall("^[|] .* 90.00 ", out, re.M)) == 1
    assert len(re.findall("^[|] .*, repaired .* 80.00 ", out, re.M)) == 1


def test_a_table_of_corrected_networks_alone_is_no_further_run_of_them(table):
    both = table("a", prune={"repair": 50}, corrected=95.0)
    prune = {"repair": 50, "corrected_only": True}
    only = table("b", accuracy=None, prune=prune, corrected=95.0)
    _, runs = read_runs([both, only], ["SFW", "SFW"])
    assert {column: len(of_runs) for (_, column), of_runs in runs.items()} == {
        "as pruned": 1,
        "repaired": 1,
    }
    assert "| SFW, repaired | 95.00" in comparison_table(read_runs([only], ["SFW"])[1])


def test_accuracies_of_outputs_that_are_not_finite_are_marked(quick, table, tmp_path):
    tables = [
        table("a", Accuracy(90.0, 3)),
        table("b", Accuracy(None, 9), tau=5.0),
        table("c", 80.0, tau=4.0),
        table("d", Accuracy(None, 9), tau=4.0, seed=1),
    ]
    status, out, err = quick("test_prune.py", "--compare", *tables, "--output_dir", tmp_path)
    assert status == 0, err
    cells = [line.split(" | ")[1] for line in out.splitlines() if line.startswith("| tau ")]
    assert cells == ["90.00, some not finite", "not finite", "not finite in 1 of 2 runs"]


def test_tables_of_one_name_in_several_folders_are_all_drawn(quick, table, tmp_path):
    tables = []
    for folder, accuracy in (("run", 90.0), ("run_", 80.0)):
        (tmp_path / folder).mkdir()
        path = table("x", accuracy)
        tables.append(tmp_path / folder / "x.csv")
        for suffix in (".csv", ".json"):
            path.with_suffix(suffix).rename(tables[-1].with_suffix(suffix))
    status, out, _ = quick("test_prune.py", "--compare", *tables, "--output_dir", tmp_path)
    assert status == 0 and " 90.00 " in out and " 80.00 " in out


def test_tables_of_own_ratios_are_compared_at_those_that_all_have(quick, table, tmp_path):
    tables = [table(f"run{i}", tau=i + 1.0, prune=dict(ratios=(0.5, 0.995, i / 9))) for i in (1, 2)]
    tables.append(table("old", prune=dict(ratios=(0.5, 0.995, *RATIOS))))
    status, out, err = quick("test_prune.py", "--compare", *tables, "--output_dir", tmp_path)
    assert status == 0, err
    assert "| weights removed | 50% | 99.5% |\n" in out
    tables += [table("other", prune=dict(ratios=(0.7,))), "--output_dir", tmp_path / "new"]
    result = quick("test_prune.py", "--compare", *tables)
    assert_refused(result, "--compare: the tables have no sparsity or pattern in common")


def test_tables_that_test_prune_wrote_are_compared(quick, trained):
    flags = (*DIGITS, "--output_dir", trained)
    for allocation in ("global", "uniform"):
        quick("test_prune.py", *flags, "--allocation", allocation)
    tables = (trained / "saved_logs" / "SFW_prune_test").glob("*.csv")
    status, out, _ = quick("test_prune.py", "--compare", *tables, "--output_dir", trained)
    assert status == 0 and "| allocation global |" in out and "| allocation uniform |" in out


def change_settings(**changed):
    def spoil(path):
        path = path.with_suffix(".json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "a.csv: is no table of pruned weights ([Errno 2] No such"),
        (lambda path: path.write_text(""), "a.csv: is no table of pruned weights"),
        (lambda path: path.write_text("threshold,above\n1,2\n"), "is no table of pruned weights"),
        (lambda path: path.write_bytes(b"\xff\xfe\0"), "is no table of pruned weights"),
        (
            lambda path: path.with_suffix(".json").unlink(),
            "a.json: does not hold the settings of a.csv ([Errno 2] No such file or directory",
        ),
        (lambda path: path.with_suffix(".json").write_text("[1]"), "a.json: does not hold the"),
        (change_settings(training={"tau": -1}), "the settings of a.csv (--tau -1: must be"),
        (change_settings(training={"other": 1}), "a.json: does not hold the settings of a.csv"),
        (change_settings(pruning={"repair": -1}), "the settings of a.csv (--repair -1: must be"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(spoil, message, quick, table, tmp_path):
    path = table("a")
    spoil(path)
    result = quick("test_prune.py", "--compare", table("b"), path, "--output_dir", tmp_path / "new")
    assert_refused(result, message)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flag", ["--seed 1", "--repair 1", "--model_path x.pt"])
def test_other_flags_beside_compare_are_refused(flag, quick, table):
    result = quick("test_prune.py", "--compare", table("a"), *flag.split())
    name = flag.split()[0]
    assert_refused(result, f"error: {name}: --compare takes the settings from the files")
