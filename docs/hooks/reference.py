"""Tables of the commands' options and of the sweep file's keys, from the parser and the models.

A page says where: `<!-- options: run -->`, `<!-- keys: optim -->`, and has the table behind it, up
to `<!-- end -->`. Lines below the name link a row to what has more about it, from the page's own
folder:

    <!-- keys: data
    family: data.md
    -->

`tools/reference.py` writes the tables into the pages. Each row has an anchor: `run--set`,
`optim.lr`; where a heading of the page has it, the row links there.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from carft_sweep.carft_core.config.trial import SCALARS, SECTIONS
from carft_sweep.sweeps.cli.parser import EVERYWHERE, parsers
from carft_sweep.sweeps.spec.normalize import IGNORED
from carft_sweep.sweeps.spec.schema import sweep_schema
from carft_sweep.sweeps.spec.settings import EARLY_TERMINATION, RunsOf

MARK = re.compile(
    r"(<!-- (options|keys): ([\w ]+?)\s*?((?:\n.+)*?)\s*-->)(?:\n\n(?:\|.*\n)+\n<!-- end -->)?"
)
"""With the table that was written before."""
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
Schema = Mapping[str, Any]
Row = tuple[str, str, str, str]
"""A key, whose it is, its values, and its default, each as it is shown."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page. Raises KeyError for a command or section there is not."""
    headings = {slug(heading) for heading in HEADING.findall(markdown)}

    def shown(mark: re.Match[str]) -> str:
        whole, kind, name, lines = mark.groups()
        links = dict(line.split(": ", 1) for line in lines.strip().splitlines())
        table = OptionTable if kind == "options" else KeyTable
        return f"{whole}\n\n{table(name, links, headings).text()}\n\n<!-- end -->"

    return MARK.sub(shown, markdown)


def slug(heading: str) -> str:
    """The anchor that MkDocs gives to a heading."""
    plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


class _Table:
    """A table whose rows have anchors and links."""

    def __init__(self, name: str, links: Mapping[str, str], headings: set[str]) -> None:
        self.name, self._links, self._headings = name, dict(links), headings

    def _first(self, name: str, text: str, anchor: str) -> str:
        """The first cell of a row: its name, linked, and its anchor."""
        link = self._links.pop(name, None)
        taken = anchor in self._headings
        if link is None and taken:
            link = f"#{anchor}"
        cell = f"[`{text}`]({link})" if link else f"`{text}`"
        return cell if taken else f'<a id="{anchor}"></a>{cell}'

    def _joined(self, rows: list[str]) -> str:
        if self._links:
            raise KeyError(f"{self.name} has no {', '.join(self._links)}, which the page links")
        return "\n".join(rows)


class OptionTable(_Table):
    """What a command takes, in the words of its help."""

    def text(self) -> str:
        """Raises KeyError for a command that there is not."""
        rows = ["| option | |", "|---|---|"]
        parser, commands = parsers()
        everywhere = self.name == "everywhere"
        for action in (parser if everywhere else commands[self.name]).actions():
            option = next((o for o in action.option_strings if o.startswith("--")), None)
            if (option in EVERYWHERE) != everywhere or option in ("--help", "--version"):
                continue
            value = _value_of(action)
            written = ", ".join(action.option_strings) if option else value
            written = f"{written} {value}".rstrip() if option else written
            written = written.replace("|", "\\|")
            anchor = f"{self.name.replace(' ', '-')}{option}"
            first = self._first(option, written, anchor) if option else f"`{written}`"
            meaning = (action.help or "").replace("|", "\\|")
            rows.append(f"| {first} | {meaning} |")
        return self._joined(rows)


def _value_of(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices and not action.metavar:
        return "|".join(map(str, action.choices))
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    many = " ..." if action.nargs in ("*", "+") else ""
    return f"{action.metavar or action.dest.upper()}{many}"


class KeyTable(_Table):
    """The keys of a part of the sweep file, from its JSON schema."""

    def text(self) -> str:
        """Raises KeyError for a part that there is not."""
        schema = _whole()
        models = PARTS[self.name](schema) if self.name in PARTS else _section(self.name)(schema)
        prefix = PREFIXES.get(self.name, f"{self.name}.")
        rows: dict[tuple[str, str], list[str]] = {}
        fields: dict[tuple[str, str], tuple[Schema, bool]] = {}
        for owner, model in models.items():
            for key, field in model["properties"].items():
                if field.get("const") and key in ("name", "type"):
                    continue
                same = (key, json.dumps(field, sort_keys=True))
                rows.setdefault(same, []).append(owner)
                fields[same] = field, key in model.get("required", ())
        several = len(models) > 1
        of = " of |" if several else ""
        lines = [
            f"| key |{of} values | default | meaning |",
            f"|---|{'---|' * several}---|---|---|",
        ]
        for same, owners in rows.items():
            key, (field, required) = same[0], fields[same]
            anchor = f"{prefix}{key}"
            shown = anchor if self.name in DOTTED else key
            first = self._first(key, shown, anchor)
            owned = ", ".join(f"`{owner}`" for owner in owners)
            of = f" {'all' if len(owners) == len(models) else owned} |" if several else ""
            default = "required" if required else _default(field)
            meaning = field.get("description", "").replace("|", "\\|")
            lines.append(f"| {first} |{of} {values(field)} | {default} | {meaning} |")
        return self._joined(lines)


@functools.cache
def _whole() -> Schema:
    """The schema, made once for all tables."""
    return sweep_schema()


def _default(field: Schema) -> str:
    value = field.get("default")
    return "" if value in (None, [], {}, "") or isinstance(value, dict) else f"`{_yaml(value)}`"


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def values(field: Schema) -> str:
    """What a field may be, in words: `integer ≥ 1 or `auto`` for the number of runs at once."""
    return " or ".join(dict.fromkeys(_forms(field)))


def _forms(field: Schema, *, several: bool = False) -> Iterator[str]:
    s = "s" if several else ""
    kind = field.get("type")
    if "x-words" in field:
        yield field["x-words"]
    elif "anyOf" in field:
        for form in field["anyOf"]:
            yield from _forms(form, several=several)
    elif "$ref" in field or kind == "object":
        yield f"mapping{s}"
    elif "enum" in field:
        yield ", ".join(f"`{value}`" for value in field["enum"])
    elif "const" in field:
        yield f"`{_yaml(field['const'])}`"
    elif kind == "array":
        yield f"list of {' or '.join(_forms(field['items'], several=True))}"
    elif kind in ("integer", "number"):
        yield f"{kind}{s} {_bounds(field)}".rstrip()
    elif kind in ("string", "boolean"):
        yield f"{'text' if kind == 'string' else kind}{s}"


def _bounds(field: Schema) -> str:
    """`≥ 1`, `> 0, ≤ 1`; an end that only keeps numbers sane is left out."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    ends = [f"{sign} {field[key]:g}" for key, sign in signs.items() if field.get(key, 1e9) < 1e5]
    return ", ".join(ends)


def _definition(name: str) -> Callable[[Schema], Mapping[str, Schema]]:
    return lambda schema: {name: schema["$defs"][name]}


def _section(name: str) -> Callable[[Schema], Mapping[str, Schema]]:
    return lambda schema: {name: schema["properties"]["trial"]["properties"][name]}


def _named(key: str) -> Callable[[Schema], Mapping[str, Schema]]:
    """Those of everything that is registered and has fields."""

    def forms(schema: Schema) -> Mapping[str, Schema]:
        every = schema["properties"]["trial"]["properties"][key]
        named = (every if "anyOf" in every else every["items"])["anyOf"][1:]
        return {
            form["properties"]["name"]["const"]: form
            for form in named
            if len(form["properties"]) > 1
        }

    return forms


def _file(schema: Schema) -> Mapping[str, Schema]:
    own = {key: field for key, field in schema["properties"].items() if key not in IGNORED}
    return {"file": {"properties": own}}


def _scalars(schema: Schema) -> Mapping[str, Schema]:
    fields = schema["properties"]["trial"]["properties"]
    return {"trial": {"properties": {key: fields[key] for key in (*SCALARS, "merges")}}}


def _rules(schema: Schema) -> Mapping[str, Schema]:
    kinds = {"enum": [*EARLY_TERMINATION], "description": "The rule."}
    rules = {}
    for name, cls in EARLY_TERMINATION.items():
        shown = schema["$defs"][cls.__name__]["properties"]
        own = {key: shown[key] for key in cls.model_fields if key != "type"}  # without synonyms
        rules[name] = {"properties": {"type": kinds, **own}, "required": ["type"]}
    return rules


PARTS: Mapping[str, Callable[[Schema], Mapping[str, Schema]]] = {
    "file": _file,
    "constraint": _definition("Constraint"),
    "metric": _definition("Metric"),
    "report": _definition("Report"),
    "race_seeds": _definition("RaceSeeds"),
    "retries": _definition("Retries"),
    "resources": _definition("Resources"),
    "after": _definition("After"),
    "of": lambda _: {"of": RunsOf.model_json_schema()},
    "early_terminate": _rules,
    "algorithm": _named("algorithm"),
    "merges": _named("merges"),
    "trial": _scalars,
}
"""The parts of the file that are no section of a trial."""
PREFIXES = {"file": "", "trial": "", "of": "after.of."}
DOTTED = (*SECTIONS, "algorithm")
"""Those whose keys a page shows by their whole name, as `--set` takes it."""
