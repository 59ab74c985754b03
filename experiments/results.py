"""Results of tested networks, read from the files of test_prune.py and of the proxy."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.process.errors import UserError

RESULTS = Path(__file__).parent / "results"
PROVENANCE = "provenance.json"  # in a folder: where its runs come from, by patterns of their paths
COLUMNS = AS_PRUNED, RECALIBRATED = "as pruned", "recalibrated"
# What is read unless other values are asked for; "*" is any.
USUAL = dict(images="test", granularity="weights", prune_scope="all", allocation="global")
REGIONS = {"k_sparse_constraints": " K-sparse", "l2_constraints": " L2"}
# Settings that a name states where results differ in them.
VARIED = {
    "epoch_num": "{} epochs",
    "warmup_steps": "{} warm-up steps",
    "precision": "{}",
    "allocation": "{} allocation",
    "prune_scope": "pruning {}",
}


@dataclass(frozen=True)
class Result:
    """The accuracies of one network, in percent, by COLUMNS and then by ratio or pattern.

    `sizes` maps ratios to the numbers of parameters of networks that are sliced.
    """

    path: Path
    method: str
    strength: float
    seed: int
    settings: dict[str, Any]
    accuracies: dict[str, dict[float | str, float]]
    sizes: dict[float, float]
    provenance: dict[str, str]

    @property
    def name(self) -> str:
        """The method with its strength, as a person would write it."""
        strength = "tau" if self.method.startswith("SFW") else "weight decay"
        first, *others = spelled(self.method).split(", pruned")
        return ", pruned".join([f"{first}, {strength} {self.strength:g}", *others])


def spelled(method: str) -> str:
    return method.replace("SFW ", "SFW, ")


def read_results(patterns: Iterable[str], folder: Path = RESULTS, **asked: str) -> list[Result]:
    """The results in `folder` whose paths, without suffix, match and whose settings are `asked`.

    Raises UserError for a pattern that nothing matches, so that no result is lost unnoticed.
    """
    wanted, results = USUAL | asked, []
    for pattern in patterns:
        found = [
            result
            for path in sorted(folder.glob(f"{pattern}.json"))
            if path.name != PROVENANCE
            for result in _read(path, folder)
            if all(v in ("*", result.settings.get(name, v)) for name, v in wanted.items())
        ]
        if not found:
            raise UserError(f"{pattern}: no such results in {folder}")
        results += [result for result in found if result not in results]
    return results


def by_name(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by their names, sorted, which say in what they differ but for seeds.

    Raises UserError for two results of the same settings and seed.
    """
    results, groups = list(results), {}
    values = {n: {result.settings.get(n) for result in results} for n in VARIED}
    for result in results:
        own = {n: result.settings.get(n) for n in VARIED if len(values[n]) > 1}
        ends = [VARIED[n].format(value) for n, value in own.items() if value]
        group = groups.setdefault(", ".join([result.name, *ends]), [])
        if any(other.seed == result.seed for other in group):
            raise UserError(
                f"{result.path}: has the settings and the seed of {group[0].path}; keep one"
            )
        group.append(result)
    return dict(sorted(groups.items()))


def judgements(results: Iterable[Result], column: str) -> dict[str, dict[float, float]]:
    """By method and strength, the mean of this column over ratios; for results of one seed."""
    judged: dict[str, dict[float, float]] = {}
    for result in sorted(results, key=lambda result: (result.method, result.strength)):
        mean = fmean(result.accuracies[column].values())
        judged.setdefault(result.method, {})[result.strength] = mean
    return judged


def best_of(judged: dict[str, dict[float, float]]) -> dict[str, float]:
    """By method, the strength that was judged best."""
    return {method: max(means, key=means.get) for method, means in judged.items()}


def tuned(results: Iterable[Result], judged: dict[str, dict[float, float]]) -> list[Result]:
    """The results that have the best strength of their method."""
    best = best_of(judged)
    return [result for result in results if result.strength == best.get(result.method)]


def _read(path: Path, folder: Path) -> list[Result]:
    contents, origin = json.loads(path.read_text()), _provenance(path, folder)
    if "accuracies" in contents:
        return [_of_the_proxy(path, contents, scope, origin) for scope in contents["accuracies"]]
    settings = contents["training"] | contents["pruning"]
    with path.with_suffix(".csv").open() as file:
        texts = list(csv.DictReader(file))
    first = next(iter(texts[0]))  # sparsity, ratio or pattern
    kinds = {"pattern": str}
    rows = [{n: kinds.get(n, float)(v) for n, v in row.items() if v} for row in texts]
    sizes = {r[first]: r["parameters"] for r in rows if first == "ratio"}
    accuracies = {
        name: {row[first]: row[column] for row in rows if column in row}
        for name, column in zip(COLUMNS, ("accuracy", "recalibrated"), strict=True)
    }
    sfw, k_frac = settings["optimizer"] == "SFW", settings["k_frac"]
    method = settings["optimizer"] + REGIONS.get(settings["constraint"], "")
    method += f", K of {k_frac:.0%}" * (k_frac != 0.05 and sfw)
    method += ", SFW-Init" * settings["sfw_init"]
    method += ", pruned steps" * bool(settings["pruned_steps"])
    strength = settings["tau" if sfw else "weight_decay"]
    return [Result(path, method, strength, settings["seed"], settings, accuracies, sizes, origin)]


def _of_the_proxy(path: Path, contents: dict, scope: str, origin: dict[str, str]) -> Result:
    kind, asked = (str, "granularity") if scope == "N:M" else (float, "prune_scope")
    settings = USUAL | {"images": contents["images"], asked: scope}
    pairs = {kind(ratio): pair for ratio, pair in contents["accuracies"][scope].items()}
    accuracies = {c: {r: pair[i] for r, pair in pairs.items()} for i, c in enumerate(COLUMNS)}
    method, strength, seed = (contents[name] for name in ("method", "strength", "seed"))
    return Result(path, method, strength, seed, settings, accuracies, {}, origin)


def _provenance(path: Path, folder: Path) -> dict[str, str]:
    """What PROVENANCE in the first folder says of this file, a later pattern over an earlier."""
    first, *rest = path.relative_to(folder).with_suffix("").parts
    said, file, name = {}, folder / first / PROVENANCE, "/".join(rest)
    for pattern, facts in json.loads(file.read_text()).items() if file.is_file() else ():
        said |= facts if fnmatch(name, pattern) else {}
    return said
