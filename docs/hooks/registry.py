"""Tables of what there is, in a page where it says `<!-- table: algorithms -->`.

They are written into the pages as those of `reference` are, but for the map of the source.
"""

from __future__ import annotations

import ast
import csv
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import carft_sweep
from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.registry import Registry
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.sweeps.cli.parser import COMMANDS
from carft_sweep.sweeps.doctor.checks import CHECKS
from carft_sweep.sweeps.ledger.generations import EXTEND, REEVALUATE
from carft_sweep.sweeps.space.parameters import DISTRIBUTIONS
from carft_sweep.sweeps.spec.settings import METHODS
from carft_sweep.sweeps.spec.spec import recipes

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"(<!-- table: (\w+) -->)(?:\n\n(?:\|.*\n)+\n<!-- end -->)?")
"""With the table that was written before."""
UNWRITTEN = "map"
"""The table that changes with every module."""


def on_page_markdown(markdown: str, *, written: bool = False, **_: Any) -> str:
    """MkDocs calls this for every page. With `written` the page is a file, which the map stays out
    of. Raises KeyError for a table that is not there."""

    def shown(mark: re.Match[str]) -> str:
        whole, name = mark.groups()
        if written and name == UNWRITTEN:
            return whole
        return f"{whole}\n\n{TABLES[name]()}\n\n<!-- end -->"

    return MARK.sub(shown, markdown)


def models(kind: str, registry: Mapping[str, type[BaseModel]]) -> str:
    """A row for each registered model: name, what it is, its fields with their defaults."""
    rows = [f"| {kind} | what it is | fields and defaults |", "|---|---|---|"]
    rows += [
        f"| [`{name}`](methods.md#{name}) | {vars(cls)['summary']} | {fields(cls)} |"
        for name, cls in registry.items()
    ]
    return "\n".join(rows)


def fields(cls: type[BaseModel]) -> str:
    """`kl_weight` = 1.0, ... as a sweep file writes them."""
    texts = [f"`{name}` = {json.dumps(info.default)}" for name, info in cls.model_fields.items()]
    return ", ".join(texts) or "none"


def families() -> str:
    """A row for each family: name, what it is, the defaults that it brings."""
    rows = ["| family | what it is | defaults that it brings |", "|---|---|---|"]
    for family in FAMILIES.values():
        brought = ", ".join(
            f"`{key}` = {json.dumps(value)}" for key, value in family.defaults.items()
        )
        rows.append(f"| `{family.name}` | {family.summary} | {brought or 'none'} |")
    return "\n".join(rows)


def source_map() -> str:
    """A row for each module: its path and the first line of its docstring."""
    rows = ["| file | what it is |", "|---|---|"]
    for package in ("carft_core", "sweeps", "tracking"):
        for path in sorted((ROOT / package).rglob("*.py")):
            claim = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if claim:
                first = claim.splitlines()[0].replace("|", "\\|")
                rows.append(f"| `{path.relative_to(ROOT)}` | {first} |")
    return "\n".join(rows)


def doctor() -> str:
    """A row for each check: name, what it looks at, what to do in general, seconds at most."""
    rows = ["| check | looks at | when it is not well | seconds |", "|---|---|---|---|"]
    rows += [
        f"| `{check.name}` | {check.purpose} | {check.advice} | {check.seconds:g} |"
        for check in CHECKS
    ]
    return "\n".join(rows)


def commands() -> str:
    """A row for each command: its name, linked to its heading, and its purpose."""
    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| [`{name}`](#{name}) | {purpose} |" for name, (purpose, _) in COMMANDS.items()]
    return "\n".join(rows)


def shipped() -> str:
    """A row for each recipe: its name, and the question that its file begins with."""
    rows = ["| recipe | question |", "|---|---|"]
    for name, file in recipes().items():
        first = file.read_text(encoding="utf-8").splitlines()[0]
        rows.append(f"| `{name}` | {first.removeprefix('# ')} |")
    return "\n".join(rows)


def public() -> str:
    """A row for each name that `import carft_sweep` offers: the first sentence of its docstring."""
    rows = ["| name | what it is |", "|---|---|"]
    for name in carft_sweep.__all__:
        value = getattr(carft_sweep, name)
        if isinstance(value, Registry):
            rows.append(
                f"| `{name}` | Every {value.kind} by its name, and `register` for one of yours |"
            )
        elif value.__module__.startswith("carft_sweep"):  # else it is a type such as `Loss`
            text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            rows.append(f"| `{name}` | {re.split(r'(?<=[a-z)`])[.:;] ', text)[0].rstrip('.')} |")
    return "\n".join(rows)


SHIFTS = ("v2", "r", "a", "sketch", "objectnet")


def published() -> str:
    """A row for each published number of ViT-B/16 on ImageNet, with whose runs it is of."""
    with (ROOT / "docs" / "published-sources.csv").open(encoding="utf-8") as file:
        whose = {row["source"]: row["whose runs"] for row in csv.DictReader(file)}
    head = ("method", "alpha", "test", "V2", "R", "A", "Sketch", "ObjectNet", "mean", "of")
    rows = [f"| {' | '.join(head)} | runs of | source |", f"|---|---|{'---:|' * 8}---|---|"]
    with (ROOT / "docs" / "published.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["model"] == "ViT-B-16":
                cells = [row[key] for key in ("method", "alpha", "test", *SHIFTS, "mean")]
                cells.append(str(sum(bool(row[shift]) for shift in SHIFTS)))
                cells += [whose[row["source"]], row["source"]]
                rows.append(f"| {' | '.join(cell or '–' for cell in cells)} |")
    return "\n".join(rows)


def rivals() -> str:
    """A row for each model and method of the recipe `rivals`, on fresh seeds (`tools.rivals`)."""
    titles = ("model", "method", "ID test", "OOD mean", "ID at 0.5", "OOD at 0.5")
    curves = "over fine_tune's curve | over car_ft's curve"
    rows = [f"| {' | '.join(titles)} | {curves} |", f"|---|---|{'---:|' * 4}---|---|"]
    with (ROOT / "docs" / "rivals.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells = [row["model"], " ".join(filter(None, [row["method"], row["setting"]]))]
            for name in ("id", "ood", "wise_id", "wise_ood"):
                half = row[f"{name}_half"]
                cells.append(f"{row[name]} ±{half}" if half else row[name])
            for name in ("fine_tune", "car_ft"):
                number, ends = row[f"over_{name}"], f"{row[f'from_{name}']}, {row[f'to_{name}']}"
                cells.append(f"{number} [{ends}] {row[f'state_{name}']}" if number else "")
            rows.append(f"| {' | '.join(cell or '–' for cell in cells)} |")
    return "\n".join(rows)


def methods() -> str:
    """A row for each method of search."""
    rows = ["| method | draws |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {draws} |" for name, draws in METHODS.items())])


def distributions() -> str:
    """A row for each distribution: its name, its keys with defaults, what it draws."""
    rows = ["| `distribution` | keys | draws |", "|---|---|---|"]
    for name, cls in DISTRIBUTIONS.items():
        keys = ", ".join(
            f"`{key}`" if info.default in (None, PydanticUndefined) else f"`{key}` ({info.default})"
            for key, info in cls.model_fields.items()
            if key not in ("distribution", "when")
        )
        rows.append(f"| `{name}` | {keys} | {' '.join((cls.__doc__ or '').split())} |")
    return "\n".join(rows)


def changes() -> str:
    """A row for each effect that a change of the sweep file has."""
    extend, reevaluate = (", ".join(f"`{key}`" for key in keys) for keys in (EXTEND, REEVALUATE))
    return "\n".join(
        (
            "| changed | what follows |",
            "|---|---|",
            f"| {extend} | the sweep is extended; its trials are kept |",
            f"| {reevaluate} | a new generation with the same points first; runs that are there "
            "are reused, and trials get new values from them |",
            "| anything else | a new generation: trials begin anew; equal runs are reused |",
        )
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "algorithms": lambda: models("algorithm", ALGORITHMS),
    "changes": changes,
    "commands": commands,
    "distributions": distributions,
    "merges": lambda: models("merge", MERGES),
    "methods": methods,
    "public": public,
    "published": published,
    "recipes": shipped,
    "rivals": rivals,
    "doctor": doctor,
    "families": families,
    "map": source_map,
}
