"""A comparison in a notebook: short as text, whole and harmless as HTML."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.tracking.made_up import KL, bent, kl_sweep, metrics, run, zero_shot
from tracking.comparison.compare import Comparison, compare
from tracking.errors import TrackingError
from tracking.report.html import MOST_ROWS, MOST_WARNINGS, cell, chart, show_in_notebooks
from tracking.report.table import TableOptions, build_table, visible_rows

HOSTILE = "</td></table><script>alert(1)</script>&'\""


class Read(HTMLParser):
    """The tags with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.stack: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts[self.stack[-1]][-1] += data

    def rows(self) -> list[tuple[str, bool]]:
        """The name of each line, and whether it is bold."""
        heads = [attributes for tag, attributes in self.tags if tag == "th"]
        return [
            (text.strip(), "bold" in str(attributes["style"]))
            for text, attributes in zip(self.texts["th"], heads, strict=True)
            if attributes["scope"] == "row"
        ]


def many(trials: int, seeds: int = 2) -> Comparison:
    runs = [zero_shot()]
    for trial in range(trials):
        for seed in range(seeds):
            at, height = 0.6 + trial / 1e5 + seed / 1e4, 0.34
            changes = {"params": {KL: float(trial)}, "merges": bent(at, height)}
            runs.append(run("car_ft", seed, metrics(at, height), trial=trial, **changes))
            baseline = run("fine_tune", seed, metrics(at, height), params={"optim.lr": trial})
            runs.append(replace(baseline, digest=f"fine_tune-{trial}-{seed}"))
    return compare(runs, sweep="many")


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(kl_sweep(), sweep="kl_weight")


def test_the_cell_has_the_verdict_the_warnings_and_the_rows_of_the_terminal(
    found: Comparison,
) -> None:
    told = replace(found, warnings=("look out", "there too"))
    read = Read(cell(told))
    assert read.texts["strong"] == [told.sentences[0]]
    assert read.texts["p"][1 : len(told.sentences)] == [*told.sentences[1:]]
    assert read.texts["li"] == ["look out", "there too"]
    names = [line.name.strip() for line in build_table(told).lines]
    assert [name for name, _ in read.rows()] == names
    assert [name for name, bold in read.rows() if bold] == [
        f"▸ {row.arm.label}" for row in told.rows if row.selected
    ]
    assert any(re.fullmatch(r"\d+\.\d ±\d+\.\d", cell) for cell in read.texts["td"])
    assert "▸ selected." in read.texts["small"][0]


def test_the_cell_takes_colours_from_the_notebook_and_runs_nothing(found: Comparison) -> None:
    read = Read(cell(found))
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "style", "a", "img", "link"})
    for tag, attributes in read.tags:
        assert attributes.keys() <= {"style", "scope", "open"}, tag
        assert not re.search(r"color|background|#|rgb|url", attributes.get("style") or ""), tag


def test_what_a_cell_quotes_stays_text() -> None:
    runs = [
        run("fine_tune", 0, metrics(0.6, 0.3)),
        run("car_ft", 0, metrics(0.61, 0.3), trial=0, params={"prompts.classes": HOSTILE}),
    ]
    hostile = replace(compare(runs, sweep=HOSTILE), warnings=(HOSTILE,))
    read = Read(cell(hostile))
    assert "script" not in read.texts
    assert read.texts["li"] == [HOSTILE]
    assert read.texts["caption"][0].startswith(HOSTILE)
    assert any(HOSTILE in name for name, _ in read.rows())


def test_nothing_at_all_is_shown_too() -> None:
    empty = compare([], sweep="none")
    read = Read(cell(empty))
    assert read.rows() == []
    assert read.texts["strong"] == [empty.sentences[0]]
    assert repr(empty).startswith("<Comparison of 'none', 0 rows\n ")


def test_however_large_a_sweep_is_its_cell_and_its_repr_are_not() -> None:
    large = replace(many(400), warnings=("odd",) * 1000)
    read = Read(cell(large))
    rows = read.rows()
    assert len(large.rows) > 10 * MOST_ROWS
    assert 3 <= len(rows) <= MOST_ROWS
    assert any(bold for _, bold in rows)
    assert len(read.texts["li"]) == MOST_WARNINGS + 1
    assert read.texts["li"][-1] == "and 995 more, in its warnings"
    left = len(visible_rows(large, TableOptions())) - len(rows)
    assert read.texts["small"][0].endswith(f" {left} more rows are in rows_frame(comparison).")
    assert len(cell(large)) < 200_000
    assert len(repr(large)) < 400
    assert repr(large).count("\n") == 1


def test_the_repr_names_sweep_rows_and_verdict(found: Comparison) -> None:
    first, second = repr(found).split("\n")
    assert first == f"<Comparison of 'kl_weight', {len(found.rows)} rows"
    assert found.sentences[0][:100] in second


def test_a_notebook_shows_a_comparison_by_itself() -> None:
    script = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from tests.tracking.made_up import kl_sweep\n"
        "from tracking.comparison.compare import compare\n"
        "from tracking.report.html import cell, show_in_notebooks\n"
        "shell = InteractiveShell.instance()\n"
        "found = compare(kl_sweep(), sweep='kl_weight')\n"
        "show_in_notebooks()\n"
        "data, _ = shell.display_formatter.format(found)\n"
        "assert data['text/html'] == cell(found)\n"
        "assert data['text/plain'].startswith('<Comparison of')\n"
    )
    show_in_notebooks()  # where there is none it does nothing
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", ["id_ood", "response"])
def test_a_chart_of_the_report_is_altair_s_own_and_as_wide_as_asked(
    found: Comparison, name: str
) -> None:
    spec = chart(found, name, width=500).properties(title="mine").to_dict()
    assert spec["title"] == "mine"
    assert "background" not in spec
    widths = [spec["width"]] if "width" in spec else [one["width"] for one in spec["concat"]]
    assert all(isinstance(width, int) and 0 < width <= 500 for width in widths)


def test_a_chart_that_is_not_there_or_has_nothing_to_show_is_an_error(found: Comparison) -> None:
    with pytest.raises(TrackingError, match="unknown chart 'id_odd'; did you mean 'id_ood'"):
        chart(found, "id_odd")
    with pytest.raises(
        TrackingError, match="kl_weight has nothing to show in the chart 'learning'"
    ):
        chart(found, "learning")
