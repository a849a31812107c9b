"""YAML with lines: YAML 1.2's scalars, PyYAML's structure, and where each value stands."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.sweeps.spec import document as module
from carft_sweep.sweeps.spec.document import MAX_NODES, YamlError, parse

SCALARS: dict[str, object] = {
    **{"1e-4": 1e-4, "1.": 1.0, "-.inf": float("-inf"), "010": 10, "!!float 1": 1.0},
    **{"1_000": "1_000", "12:30:45": "12:30:45", "2024-01-01": "2024-01-01", "on": "on"},
    **{"No": "No", "'1e-4'": "1e-4", "!!str 1e-4": "1e-4", "<<": "<<"},
    **{"true": True, "~": None, "": None},
}


def test_scalars_are_those_of_yaml_1_2() -> None:
    read = {text: parse(f"x: {text}\n").data["x"] for text in SCALARS}
    assert [*map(repr, read.values())] == [*map(repr, SCALARS.values())]


NUMBERS = st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc.", min_size=1), inner),
    max_leaves=20,
)


@given(data=st.dictionaries(st.text("abcdef", min_size=1), PLAIN), flow=st.booleans())
def test_what_pyyaml_writes_is_read_back_equal(data: dict[str, Any], flow: bool) -> None:
    # Strings are quoted, since PyYAML leaves `1e-4` bare: text to it, a number to YAML 1.2.
    class Quoting(yaml.SafeDumper):
        pass

    Quoting.add_representer(
        str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    )
    document = parse(yaml.dump(data, Dumper=Quoting, default_flow_style=flow, allow_unicode=False))
    assert (document.data, document.mistakes) == (data, ())


@given(data=st.dictionaries(st.text("abcdef", min_size=1), st.lists(st.integers())))
def test_the_line_of_a_key_and_of_an_item_is_where_the_text_has_it(data: dict[str, Any]) -> None:
    text = yaml.safe_dump(data, default_flow_style=False)
    lines = text.splitlines()
    document = parse(text)
    for key, items in data.items():
        assert lines[document.lines[key,] - 1].startswith((f"{key}:", f"'{key}'"))
        for index, item in enumerate(items):
            assert lines[document.lines[key, index] - 1].strip() == f"- {item}"


def test_an_alias_has_the_lines_of_its_anchor_and_a_duplicate_key_its_first_value() -> None:
    document = parse("a: &x\n  p: 1\nb: *x\na: 3\n")
    assert document.data == {"a": {"p": 1}, "b": {"p": 1}}
    assert (document.lines["b",], document.lines["b", "p"]) == (3, 2)
    assert [(item.line, item.route) for item in document.mistakes] == [(4, ("a",))]


DOUBLING = zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True)
ENDLESS = {
    "brackets": "[" * 5_000,
    "braces": "{" * 500,
    "dashes": "- " * 5_000,
    "long": "x: [" + "1, " * 2_000 + "]",
    "bomb": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in DOUBLING),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_text_that_grows_without_end_is_stopped(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_NODES < 30_000
    monkeypatch.setattr(module, "MAX_NODES", 1_000)
    with pytest.raises(YamlError, match=r"more than 1000|nested more than"):
        parse(ENDLESS[kind])
    assert parse("x: [" + "1," * 997 + "]").data["x"] == [1] * 997
