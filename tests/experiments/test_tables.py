"""The pages of results: made from files, and never of more than these say."""

import csv
import json
import re

import pytest
from runs import ROOT

from experiments import results, tables
from experiments.results import by_name, read_results
from utils.process.errors import UserError

PAGES = ("README.md", *(str(p.relative_to(ROOT)) for p in sorted(tables.FOLDER.glob("*.md"))))
SGD = dict(optimizer="SGD", constraint="unconstraints", weight_decay=0.01, tau=15.0)
SFW = dict(optimizer="SFW", constraint="k_sparse_constraints", weight_decay=0.0, tau=15.0)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_files_say(name):
    page = (ROOT / name).read_text()
    assert tables.filled(page) == page, "run make results"


@pytest.mark.parametrize("name", PAGES)
def test_a_picture_shows_what_the_files_say(name):
    for picture in tables.pictures((ROOT / name).read_text()):
        assert tables.is_drawn(*picture), "run make results"


@pytest.mark.parametrize("name", PAGES[1:])
def test_no_accuracy_is_typed_in_by_hand(name):
    outside = re.sub(r"<!-- end -->|```.*?```", "", tables.BLOCK.sub("", (ROOT / name).read_text()))
    assert not re.search(r"\b\d\d\.\d", outside)


@pytest.fixture
def write(tmp_path):
    """write(name, settings, accuracies by ratio, ...) as test_prune.py does, into a folder."""

    def write_run(name, training, rows, granularity="weights", **more):
        common = dict(k_frac=0.05, sfw_init=0, pruned_steps=0.0, seed=0, epoch_num=20)
        contents = {
            "training": common | training | more,
            "pruning": {"granularity": granularity, "prune_scope": "all", "allocation": "global"},
        }
        path = tmp_path / "new" / name
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(contents))
        columns = ["sparsity", "accuracy", "recalibrated"]
        if granularity == "channels":
            columns = ["ratio", "accuracy", "recalibrated", "parameters"]
        with path.with_suffix(".csv").open("w") as file:
            csv.writer(file).writerows([columns, *rows])

    return write_run


def table_of(folder, columns, ratios, **asked):
    rows = by_name(read_results(["*/*"], folder, **asked))
    return tables.accuracy_table(rows, columns, ratios).splitlines()[2:]


def test_a_new_folder_becomes_rows_named_by_their_settings(write, tmp_path):
    for seed, accuracy in enumerate((80, 82)):
        rows = [(0, 90 + seed, 90), (0.95, accuracy, 85)]
        write(f"sgd_{seed}", SGD, rows, pruned_steps=0.33, seed=seed)
    write("sfw", SFW, [(0, 91, 91)])
    write("sliced", SFW, [(0.5, 70, 75, 3.2e6)], granularity="channels")
    (tmp_path / "new" / "course.csv").write_text("epoch,loss\n1,2.3\n")
    sfw, sgd = table_of(tmp_path, ["as pruned"], (0.0, 0.95))
    assert sfw == "| SFW, K-sparse, tau 15 | 91.0 |  | yes |"
    name, *cells = sgd.strip("| ").split(" | ")
    assert name == "SGD, weight decay 0.01, pruned steps"
    assert cells == ["90.5 (90.0 to 91.0)", "81.0 (80.0 to 82.0)", "yes"]
    assert table_of(tmp_path, results.COLUMNS, (0.5,), granularity="channels") == [
        "| SFW, K-sparse, tau 15 | 70.0 / 75.0 (3.2 M) | yes |"
    ]


def test_settings_in_which_rows_differ_are_named(write, tmp_path):
    write("a", SGD, [(0, 90, 90)])
    write("b", SGD, [(0, 91, 91)], epoch_num=30)
    rows = table_of(tmp_path, ["as pruned"], (0.0,))
    assert [row.split(" |")[0] for row in rows] == [
        "| SGD, weight decay 0.01, 20 epochs",
        "| SGD, weight decay 0.01, 30 epochs",
    ]


def test_a_row_that_cannot_be_repeated_says_so(write, tmp_path):
    write("a", SGD, [(0, 90, 90)])
    facts = {"*": {"repeatable": "yes"}, "a": {"repeatable": "no: typed in"}}
    (tmp_path / "new" / "provenance.json").write_text(json.dumps(facts))
    (row,) = table_of(tmp_path, ["as pruned"], (0.0,))
    assert row.endswith("| no: typed in |")


def test_two_files_of_one_network_are_refused(write, tmp_path):
    for name in "ab":
        write(name, SGD, [(0, 90, 90)])
    with pytest.raises(UserError, match="has the settings and the seed of"):
        table_of(tmp_path, ["as pruned"], (0.0,))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- seeds mnist/none -->3<!-- end -->", "mnist/none: no such results"),
        ("<!-- value ratio:0 mnist/* --><!-- end -->", "is of 5 rows"),
        ("<!-- seeds colum:x mnist/* --><!-- end -->", "there is no option colum"),
        ("<!-- seeds mnist/* -->3 <!-- seeds mnist/* --><!-- end -->", "without its other half"),
    ],
)
def test_a_mark_that_asks_for_what_is_not_there_is_refused(page, message):
    with pytest.raises(UserError, match=message):
        tables.filled(page)


def test_a_picture_of_other_numbers_is_known(write, tmp_path, drawing):
    path = tmp_path / "picture.png"
    for accuracy in (90, 91):
        write("a", SGD, [(0, accuracy, 90), (0.9, 80, 85)])
        picture = path, by_name(read_results(["*/*"], tmp_path)), "title"
        assert not tables.is_drawn(*picture)
        tables.draw(*picture)
        assert tables.is_drawn(*picture)
