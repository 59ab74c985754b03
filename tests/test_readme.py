"""What the pages of documentation say is true: commands, flags, names, links, outputs."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import OUTPUTS, PAGES, README, blocks, section, without_blocks
from runs import DIGITS, ROOT, SCRIPTS
from torch.distributed.run import get_args_parser as torchrun_parser

import test_prune
import test_weight_distribution
import train_prune
from utils.datasets import DATASETS, OwnData
from utils.prune.config import PruneConfig
from utils.settings.config import Config


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
    ours = ("reproduce", "proxy", "gpu_check", "runtimes")
    scripts = (*SCRIPTS, *(f"experiments/{name}.py" for name in ours))
    scripts += ("benchmarks/optimizer_step.py",)
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
    assert {path for path in (ROOT / "docs").rglob("*") if path.is_file()} <= linked


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


def test_outputs_are_described(tmp_path):
    flags = [*DIGITS, "--sfw_init", "1", "--sfw_init_iters", "10", "--output_dir", str(tmp_path)]
    board = ["--tensorboard"] if find_spec("tensorboard") else []
    assert train_prune.main([*flags, *board]) == 0
    assert test_prune.main([*flags, "--repair", "64", "--save_pruned", "0.9"]) == 0
    assert test_weight_distribution.main(flags) == 0
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    (run,) = (path.stem for path in written if path.suffix == ".pt")
    for path in written:
        described = str(path).replace(run, "RUN").replace("_repair=64", "")
        assert f"`{re.sub(r'(?<=tfevents)[.].+', '.*', described)}`" in OUTPUTS
    examples = {labels(line) for block in blocks(OUTPUTS, "text") for line in block.splitlines()}
    for path in tmp_path.rglob("*.log"):
        first, *lines = path.read_text().splitlines()
        assert first.startswith("Configuration ")
        assert {labels(line) for line in lines} <= examples
    for path in tmp_path.rglob("*.csv"):
        for column in path.read_text().splitlines()[0].split(","):
            assert f"`{column}`" in OUTPUTS


def labels(line):
    """The words of a log line that are the same in all lines of its kind."""
    return tuple(re.findall(r"(?<!\S)([A-Z]\w*|of|weights):?(?=\s)", line))
