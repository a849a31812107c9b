"""The drawings of the benchmark and those of the pre-training: no drawing is in both."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from tools.builtin.source import Drawing

REPORT_SHARE = 154
"""Share of 256 of the report's classes: six in ten."""


@dataclass(frozen=True)
class Item:
    """A benchmark drawing, its class, and its split: "train", "val", "test" or a shift's name."""

    drawing: Drawing
    label: str
    split: str


@dataclass(frozen=True)
class Pair:
    """A pre-training drawing and the names for its captions, the concept's own name first."""

    drawing: Drawing
    concept: str
    names: tuple[str, ...]
    designers: int
    """How many designer families draw the concept."""


@lru_cache(maxsize=1)
def read_classes() -> dict[str, tuple[str, ...]]:
    """Return by class the concepts that are the same thing, its own spelling included."""
    text = resources.files(__package__).joinpath("classes.yaml").read_text(encoding="utf-8")
    classes: Mapping[str, list[str]] = yaml.safe_load(text)
    return {
        name: tuple(dict.fromkeys([name.replace("-", " "), *aliases]))
        for name, aliases in classes.items()
    }


@lru_cache(maxsize=1)
def read_benchmark() -> Mapping[str, Any]:
    """Return the curated `benchmark.yaml`: designers of each split and shift, and limits."""
    text = resources.files(__package__).joinpath("benchmark.yaml").read_text(encoding="utf-8")
    plan: Mapping[str, Any] = yaml.safe_load(text)
    return plan


def evaluation_designers(plan: Mapping[str, Any]) -> frozenset[str]:
    """Return every designer family of val, test or a shift."""
    groups = [*plan["id"].values(), *(shift["designers"] for shift in plan["shifts"].values())]
    return frozenset(designer for group in groups for designer in group)


def split_names(plan: Mapping[str, Any]) -> list[str]:
    """Return train, val, test and the shifts, in the order of the packed file."""
    return ["train", *plan["id"], *plan["shifts"]]


def alias_table(classes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the class of each concept. Raises ValueError when two classes claim one concept."""
    table: dict[str, str] = {}
    for name, concepts in classes.items():
        for concept in concepts:
            if table.setdefault(concept, name) != name:
                raise ValueError(f"{concept!r} is claimed by {table[concept]!r} and {name!r}")
    return table


def benchmark_items(
    drawings: Iterable[Drawing], classes: Mapping[str, tuple[str, ...]], plan: Mapping[str, Any]
) -> list[Item]:
    """Return the drawings of benchmark classes by each split's designers in the split's style.

    Train has the solid drawings of all designers that no other split or shift has.
    """
    table, evaluated = alias_table(classes), evaluation_designers(plan)
    split_of = {
        (designer, plan["id_style"]): split
        for split, designers in plan["id"].items()
        for designer in designers
    }
    for shift, rule in plan["shifts"].items():
        split_of |= {(designer, rule["style"]): shift for designer in rule["designers"]}
    items = []
    for drawing in drawings:
        label = table.get(drawing.concept)
        split = split_of.get((drawing.designer, drawing.style))
        if drawing.designer not in evaluated and drawing.style == plan["id_style"]:
            split = "train"
        if label is not None and split is not None:
            items.append(Item(drawing, label, split))
    return items


def pretraining_pairs(
    drawings: Iterable[Drawing],
    classes: Mapping[str, tuple[str, ...]],
    plan: Mapping[str, Any],
    *,
    share_alike: Iterable[str] = (),
) -> list[Pair]:
    """Return pairs of all drawings but those that `is_held_out`, and those of `share_alike`
    sets."""
    table = alias_table(classes)
    barred_sets = frozenset(share_alike)
    names = frozenset(table)
    groups: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        if drawing.set in barred_sets:
            continue
        if is_held_out(drawing, names, plan):
            continue
        groups[table.get(drawing.concept, drawing.concept)].append(drawing)
    return [
        Pair(drawing, concept, tuple(dict.fromkeys([concept, drawing.concept])), designers)
        for concept, group in groups.items()
        for designers in [len({drawing.designer for drawing in group})]
        for drawing in group
    ]


def is_held_out(drawing: Drawing, names: frozenset[str], plan: Mapping[str, Any]) -> bool:
    """Return whether a drawing may not be in the pre-training, by name and designer or style.

    Its name contains one of `names`, the classes' names and synonyms ("rocket launch off" contains
    "rocket"), and it is solid, as train's drawings are, or by a designer of val, test or a shift.
    """
    by_rule = drawing.style == plan["id_style"] or drawing.designer in evaluation_designers(plan)
    return by_rule and contains_a_name(drawing.concept, names)


def contains_a_name(concept: str, names: frozenset[str]) -> bool:
    """Return whether words of `concept` in a row are a name ("rocket launch off", rocket)."""
    words = concept.split()
    return any(
        " ".join(words[start:end]) in names
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    )


def subset_of(name: str) -> str:
    """Return `report` or `development`, by the class's name alone, whatever others there are."""
    draw = hashlib.sha256(f"icon_shift/{name}".encode()).digest()[0]
    return "report" if draw < REPORT_SHARE else "development"


def select_items(items: Iterable[Item], plan: Mapping[str, Any]) -> list[Item]:
    """Return the benchmark: classes with enough drawings in each required split, capped by split.

    Ordered by class, split and id, so that the packed file does not depend on the source's order.
    """
    drawings, classes = frozenset(plan["excluded_drawings"]), frozenset(plan["excluded_classes"])
    groups: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.drawing.id not in drawings and item.label not in classes:
            groups[item.label][item.split].append(item)
    chosen = []
    for label in sorted(groups):
        group = groups[label]
        if any(len(group[split]) < least for split, least in plan["minimum"].items()):
            continue
        for split in split_names(plan):
            ranked = sorted(group[split], key=lambda item: _rank(item.drawing.id))
            best = ranked[: plan["maximum"][split]]
            chosen += sorted(best, key=lambda item: item.drawing.id)
    return chosen


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
