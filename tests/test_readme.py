"""What README.md, docs/ and data/README.md show is true: commands, snippets, names, links."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs import DIGITS, ROOT, SCRIPTS
from torch.distributed.run import get_args_parser as torchrun_parser

import test_prune
import test_weight_distribution
import train_prune
from constraints import LpBall
from utils.datasets import DATASETS, OwnData, describe_own
from utils.prune.config import PruneConfig
from utils.settings.config import Config

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data/README.md")
}
README, OUTPUTS = PAGES["README.md"], PAGES["docs/outputs.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def without_blocks(page):
    return re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def section(page, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)[1]


def commands():
    """Every command of a ```sh block, its lines joined, with the page that it stands on."""
    for name, page in PAGES.items():
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from ((name, " ".join(part.split())) for part in line.split("&&"))


COMMANDS = list(commands())
SBATCH = ("--array", "--gres", "--signal", "--requeue", "--wrap")  # of SLURM
TENSORBOARD = ("--logdir",)


class Parsed(BaseException):
    """Ends a script once it has parsed its flags: the parser, and the values that it found."""


@pytest.fixture
def parse(monkeypatch):
    """parse(script, *flags) starts a script as a user does, and gives its parser and values."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments):
        raise Parsed(parser, vars(parse_args(parser, *arguments)))

    def run(script, *flags):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr(sys, "argv", [script, *flags])
        monkeypatch.syspath_prepend(str((ROOT / script).parent))
        with pytest.raises(Parsed) as caught:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return caught.value.args

    return run


def scripts_of(target):
    """The Python commands, as lists of words, that `make` with these words would run."""
    done = subprocess.run(
        ["make", "--dry-run", *target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [shlex.split(line.lstrip("@")) for line in done.stdout.splitlines() if ".py" in line]
    return [words[1:] for words in lines]


def check_settings(values):
    """Raise UserError where the values that a command gives make no sense together."""
    if values.get("data", "cifar10") not in DATASETS:
        own = OwnData(("a", "b"), 3, 24, (0.5,) * 3, (0.2,) * 3, (9, 9), "")
        values = values | {"own_data": own.plain()}
    for kind in (Config, PruneConfig):
        names = {field.name for field in fields(kind)}
        kind(**{name: value for name, value in values.items() if name in names})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_runs_as_it_is_printed(page, command, parse):
    program, *words = shlex.split(command)  # a comment's words would be taken for flags
    if program == "python":
        _, values = parse(*words)
        if not words[0].startswith("benchmarks/"):  # whose flags of the same names have no settings
            check_settings(values)
    elif "torchrun" in (program, words[0]):
        options = torchrun_parser().parse_args(words[words[0] == "torchrun" :])
        _, values = parse(options.training_script, *options.training_script_args)
        check_settings(values)
    elif program == "sbatch":
        python, *wrapped = words[-1].removeprefix("exec ").split()
        assert python == "python"
        parse(*wrapped)
    elif program == "tensorboard":
        assert words == [*TENSORBOARD, str(Config().files.tensorboard.parent)]
    elif program == "make":
        for script, *flags in scripts_of(words):
            if "Parser(" in (ROOT / script).read_text() or flags:
                parse(script, *flags)
    elif "pytest" in words:
        variable, pattern = program.split("=")[0], words[words.index("-k") + 1]
        others = (path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
        tests = "".join(path.name + path.read_text() for path in others)
        assert variable in tests and pattern in tests
    else:
        assert command in (
            ". .venv/bin/activate",
            "python3 -m venv .venv",
            ".venv/bin/pip install -r requirements.txt",
        )


def test_commands_stand_in_blocks_that_are_tested():
    for page in PAGES.values():
        languages = re.findall(r"^```(.*)$", page, re.MULTILINE)[::2]
        assert set(languages) <= {"sh", "python", "text", "bibtex"}
        assert not re.search(r"^(    |\t)(python|make|pytest) ", page, re.MULTILINE)
        for block in blocks(page, "text"):
            assert not re.search(r"^\s*(python|make|pytest) ", block, re.MULTILINE)


def test_the_flags_exist(parse):
    scripts = (*SCRIPTS, scripts_of(["reproduce"])[0][0], "experiments/proxy.py")
    parsers = [torchrun_parser(), *(parse(script)[0] for script in scripts)]
    known = {"--help", *SBATCH, *TENSORBOARD} | {
        f for p in parsers for a in p._actions for f in a.option_strings
    }
    for name, page in PAGES.items():
        assert set(re.findall(r"--[a-z_]+", page)) <= known, name


def slugs(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page))
    return [target for target in targets if not re.match("https?:", target)]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in links(PAGES[name]):
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in slugs(file.read_text()), target


def test_every_page_and_picture_of_docs_is_linked():
    linked = {
        ((ROOT / name).parent / target.split("#")[0]).resolve()
        for name, page in PAGES.items()
        for target in links(page)
    }
    assert set((ROOT / "docs").iterdir()) <= linked


@pytest.mark.parametrize("name", PAGES)
def test_the_files_and_folders_that_are_named_exist(name):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for path in re.findall(r"`([\w/]+(?:/|\.py|\.md|\.txt|\.toml))`", without_blocks(PAGES[name])):
        if path.split("/")[0] in folders - {"saved_models", "saved_logs"} or "/" not in path:
            assert (ROOT / path).exists(), path


def test_the_map_shows_every_folder():
    (block,) = blocks(section(README, "Folders"), "text")
    shown = {line.split()[0] for line in block.splitlines()}
    assert all((ROOT / path).exists() for path in shown)
    assert {f"{path.name}/" for path in ROOT.iterdir() if any(path.glob("*.py"))} <= shown
    assert set(SCRIPTS) <= shown


def test_results_of_the_readme_are_those_of_the_docs():
    rows = re.findall(r"^\|.*\|$", section(README, "Results"), re.MULTILINE)
    assert rows and set(rows) <= set(PAGES["docs/results.md"].splitlines())


def own_npz():
    (code,) = blocks(PAGES["docs/own_data.md"], "python")
    return code


def test_the_npz_of_ones_own_is_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(own_npz(), {})
    own = describe_own("shades", tmp_path / "data", None)
    assert own.classes == ("dark", "bright") and own.side == 24


def test_every_snippet_is_run_by_a_test():
    tested = {
        own_training_loop(),
        additions(),
        loading(),
        own_network(),
        deployment(),
        own_npz(),
        *sharded(),
    }
    assert {block for page in PAGES.values() for block in blocks(page, "python")} == tested


def sharded():
    """The program on docs/sharded.md, and the region of one's own."""
    return blocks((ROOT / "docs" / "sharded.md").read_text(), "python")


def test_a_program_with_sharded_parameters_runs(tmp_path):
    """In one process; tests/sharded has more."""
    path = tmp_path / "program.py"
    path.write_text(sharded()[0])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, str(path)],
        env=os.environ | alone | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[-1]) < 2


def test_a_region_of_ones_own_in_parts_takes_whole_tensors_too():
    names = {}
    exec(sharded()[1], names)
    ball, expected = names["Ball"](6, 1, radius=0.5), LpBall(6, 2, radius=0.5)
    x = torch.arange(6.0)
    for method in ("lmo", "shift_inside", "euclidean_project"):
        torch.testing.assert_close(getattr(ball, method)(x), getattr(expected, method)(x))


def own_training_loop():
    (code,) = blocks(section(README, "SFW in your own training loop"), "python")
    return code


def additions():
    (code,) = blocks(section(README, "Add a data set, a network, a region, a schedule"), "python")
    return code


def loading():
    (code,) = blocks(PAGES["docs/pruning.md"], "python")
    return code


def own_network():
    (code,) = blocks(PAGES["docs/own_networks.md"], "python")
    return code


def deployment():
    (code,) = blocks(PAGES["docs/deployment.md"], "python")
    return code


def test_the_network_of_ones_own_in_the_docs_is_trained(quick, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(own_network())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    flags = ("--data", "digits", "--arch", "nets:small_vit", "--epoch_num", 1)
    status, _, err = quick("train_prune.py", *flags)
    assert status == 0, err
    monkeypatch.delitem(sys.modules, "nets")


def test_each_format_is_loaded_in_a_program_of_ones_own(quick, trained, monkeypatch):
    pytest.importorskip("onnxruntime")
    formats = ("--pruned_format", "safetensors", "state_dict", "onnx", "--ratios", 0.9)
    flags = (*DIGITS, "--save_pruned", 0.9, *formats, "--output_dir", trained)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    monkeypatch.chdir(trained)
    names = {}
    exec(deployment(), names)
    info = DATASETS["digits"]
    inputs = (torch.from_numpy(names["images"]) - info.mean[0]) / info.std[0]
    with torch.no_grad():
        for network in (names["sparse"], names["plain"]):
            assert (network(inputs) - torch.from_numpy(names["logits"])).abs().max() < 1e-4


def test_the_example_of_an_own_training_loop_runs_and_learns():
    names = {}
    torch.manual_seed(0)
    exec(own_training_loop(), names)
    with torch.no_grad():
        x = torch.randn(4096, 20)
        y = x[:, 0] * x[:, 1]
        error = (names["model"](x).squeeze(1) - y).square().mean()
    assert error < 0.9 * y.square().mean()
    assert all(p.isfinite().all() for p in names["model"].parameters())


def test_additions_of_ones_own_train_and_are_pruned(tmp_path):
    (tmp_path / "own.py").write_text(additions())
    done = subprocess.run(
        [sys.executable, "own.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "saved_models").glob("*.pt")
    model = torch.load(path, weights_only=True)
    assert "constraint=box_constraints" in path.name and "lr_scheme=warm_up" in path.name
    assert model["metrics"]["test_accuracy"][-1] > 80
    assert len(list((tmp_path / "saved_logs" / "SFW_prune_test").glob("*.png"))) == 1


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder with all that the three scripts write."""
    folder = tmp_path_factory.mktemp("outputs")
    flags = [*DIGITS, "--sfw_init", "1", "--sfw_init_iters", "10", "--output_dir", str(folder)]
    board = ["--tensorboard"] if find_spec("tensorboard") else []
    assert train_prune.main([*flags, *board]) == 0
    assert test_prune.main([*flags, "--repair", "64", "--save_pruned", "0.9"]) == 0
    assert test_weight_distribution.main(flags) == 0
    return folder


def test_a_pruned_network_is_loaded(outputs, monkeypatch):
    monkeypatch.chdir(outputs)
    names = {}
    exec(loading(), names)
    parameters = dict(names["model"].named_parameters())
    assert all(torch.equal(names["state"][name], p) for name, p in parameters.items())
    zeros = sum(int((p == 0).sum()) for p in parameters.values())
    assert zeros == int(0.9 * sum(p.numel() for p in parameters.values()))


def test_outputs_are_described(outputs):
    written = [path.relative_to(outputs) for path in outputs.rglob("*") if path.is_file()]
    (run,) = (path.stem for path in written if path.suffix == ".pt")
    for path in written:
        described = str(path).replace(run, "RUN").replace("_repair=64", "")
        assert f"`{re.sub(r'(?<=tfevents)[.][0-9]+', '.TIME', described)}`" in OUTPUTS
    examples = {labels(line) for block in blocks(OUTPUTS, "text") for line in block.splitlines()}
    for path in outputs.rglob("*.log"):
        first, *lines = path.read_text().splitlines()
        assert first.startswith("Configuration ")
        assert {labels(line) for line in lines} <= examples
    for path in outputs.rglob("*.csv"):
        for column in path.read_text().splitlines()[0].split(","):
            assert f"`{column}`" in OUTPUTS


def labels(line):
    """The words of a log line that are the same in all lines of its kind."""
    return tuple(re.findall(r"(?<!\S)([A-Z]\w*|of|weights):?(?=\s)", line))
