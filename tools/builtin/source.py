"""Drawings in a folder of @iconify/json, with name, style, designer family and licence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

Styles = Mapping[str, Any]


@dataclass(frozen=True)
class IconSet:
    """One icon set as `collections.json` describes it, with the designer family that we give it."""

    prefix: str
    title: str
    author: str
    licence: str
    url: str
    designer: str
    rules: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """One icon; `concept` is its name in words, without those for style and variant."""

    id: str
    concept: str
    style: str
    designer: str
    licence: str
    svg: str

    @property
    def set(self) -> str:
        return self.id.split(":", 1)[0]


@lru_cache(maxsize=1)
def read_styles() -> Styles:
    """Return the curated `styles.yaml` beside this module."""
    text = resources.files(__package__).joinpath("styles.yaml").read_text(encoding="utf-8")
    styles: Styles = yaml.safe_load(text)
    return styles


def read_sets(source: Path, styles: Styles | None = None) -> list[IconSet]:
    """Return the usable sets in the order of `styles.yaml`. Raises FileNotFoundError if no
    source."""
    styles = styles or read_styles()
    catalogue = json.loads((source / "collections.json").read_text(encoding="utf-8"))
    usable = []
    for designer, sets in styles["families"].items():
        for prefix, rules in sets.items():
            info = catalogue.get(prefix)
            if info is None:
                continue
            licence = info["license"].get("spdx", "")
            if licence not in styles["licences"] and prefix not in styles["share_alike"]:
                continue
            if not isinstance(rules, dict):
                rules = {"style": rules}
            author = info["author"]
            usable.append(
                IconSet(
                    prefix=prefix,
                    title=info["name"],
                    author=author["name"],
                    licence=licence,
                    url=author.get("url", info["license"].get("url", "")),
                    designer=designer,
                    rules=rules,
                )
            )
    return usable


def split_name(
    name: str, rules: Mapping[str, Any], styles: Styles | None = None
) -> tuple[str, str | None]:
    """Split `rocket-launch-outline` into (`rocket launch`, `outline`); style None: not used."""
    styles = styles or read_styles()
    words = name.lower().replace("_", "-").split("-")
    style: str | None = rules.get("style")
    prefixes = rules.get("prefix_words", {})
    if words[0] in prefixes:
        style = prefixes[words[0]]
        words = words[1:]
    has_style = False
    while len(words) > 1:
        taken, meaning = _trailing(words, rules, styles)
        if taken == 0:
            break
        if meaning == "drop":
            return " ".join(words), None
        if meaning is not None and not has_style:
            # A set drawn by hand or in pixels stays so, whatever its names say of lines and fills.
            if style not in ("hand", "pixel", "3d", "flat", "black"):
                style = None if meaning == "none" else meaning
            has_style = True
        words = words[:-taken]
    return " ".join(words), style


def _trailing(words: list[str], rules: Mapping[str, Any], styles: Styles) -> tuple[int, str | None]:
    """Return how many of the last words are a modifier, and its style (None: only a variant)."""
    own = rules.get("words", {})
    for count in (3, 2, 1):
        if len(words) <= count:
            continue
        tail = "-".join(words[-count:])
        if tail in rules.get("drop", ()):
            return count, "drop"
        if tail in own:
            return count, own[tail] or "none"
        for style, tails in styles["words"].items():
            if tail in tails:
                return count, style
        if tail in styles["variants"]:
            return count, None
    return 0, None


def read_drawings(source: Path, styles: Styles | None = None) -> Iterator[Drawing]:
    """Yield each usable drawing, one per (set, concept, style): that with the shortest name."""
    styles = styles or read_styles()
    barred = frozenset(styles["not_concepts"])
    for icon_set in read_sets(source, styles):
        content = json.loads((source / "json" / f"{icon_set.prefix}.json").read_text("utf-8"))
        names = [name for name, icon in content["icons"].items() if not icon.get("hidden")]
        seen: set[tuple[str, str]] = set()
        for name in sorted(names, key=lambda name: (len(name), name)):
            concept, style = split_name(name, icon_set.rules, styles)
            if style is None or len(concept) < 3 or (concept, style) in seen:
                continue
            if barred.intersection(concept.split()) or not concept.replace(" ", "").isalpha():
                continue
            seen.add((concept, style))
            yield Drawing(
                id=f"{icon_set.prefix}:{name}",
                concept=concept,
                style=style,
                designer=icon_set.designer,
                licence=icon_set.licence,
                svg=_svg(content["icons"][name], content),
            )


def _svg(icon: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    def value(key: str, default: float) -> float:
        number: float = icon.get(key, content.get(key, default))
        return number

    width, height = value("width", 16), value("height", 16)
    box = f"{value('left', 0)} {value('top', 0)} {width} {height}"
    # A square canvas for every drawing: preserveAspectRatio, by default, centres other shapes.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="48" height="48" viewBox="{box}" color="black">{icon["body"]}</svg>'
    )
