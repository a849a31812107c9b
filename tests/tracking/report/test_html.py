"""The page and a notebook's cell: whole, harmless, and small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest

from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report import html
from carft_sweep.tracking.report.table import build_table
from tests.tracking.made_up import KL, bent, kl_sweep, metrics, run, zero_shot

HOSTILE = "</script></td></table><img src=x onerror=alert(1)>&'\""
VOID = {"meta", "img", "br", "wbr", "input", "link", "hr"}


class Read(HTMLParser):
    """The tags of a page with their attributes and the text inside, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inside: dict[str, list[str]] = {}
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)
            self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.inside[self.stack[-1]][-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def rows(self) -> list[tuple[str, bool]]:
        """The name of each line of a table, and whether it is bold."""
        return [
            (text.strip(), "bold" in attributes.get("style", ""))
            for text, attributes in zip(self.inside["th"], self.of("th"), strict=True)
            if attributes["scope"] == "row"
        ]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(kl_sweep(), sweep="kl_weight")


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    """A page with all its parts, some of them hostile."""
    hostile = replace(comparison, sweep=HOSTILE, warnings=(HOSTILE,))
    return html.document(
        hostile,
        ChartData(hostile),
        description=HOSTILE,
        provenance=html.Provenance({"data": (HOSTILE,)}, (HOSTILE,), ((HOSTILE, HOSTILE),)),
    )


def test_it_is_well_formed_quotes_text_and_has_words_for_whoever_does_not_see(page: str) -> None:
    read = Read(page)
    assert (read.stack, read.inside["h1"]) == ([], [HOSTILE])
    assert not [attributes for _, attributes in read.tags if "onerror" in attributes]
    assert (read.of("img"), read.of("html")) == ([], [{"lang": "en"}])
    assert len(read.of("table")) == len(read.of("caption")) >= 2
    assert all(attributes.get("scope") in ("col", "row") for attributes in read.of("th"))
    regions = [tag for _, tag in read.tags if tag.get("role") == "region"]
    assert {(tag["tabindex"], tag["aria-label"] != "") for tag in regions} == {("0", True)}


def test_nothing_is_loaded_and_the_policy_allows_its_own_scripts_only(page: str) -> None:
    read = Read(page)
    for tag, attributes in read.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), f"{tag} {name}={value[:80]}"
    (policy,) = (tag["content"] for tag in read.of("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = zip(read.of("script"), read.inside["script"], strict=True)
    texts = [text.encode() for attributes, text in scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert not re.search(r"url\(|@import", read.inside["style"][0])
    assert "window.vegaEmbed" in html.library()
    assert "\r" not in html.library(), "which a page cannot hold"


def test_every_chart_with_something_to_show_has_heading_words_place_and_data(
    page: str, comparison: Comparison
) -> None:
    data = ChartData(comparison)
    expected = [name for name, chart in CHARTS.items() if chart.draw(data) is not None]
    read = Read(page)
    assert [tag["data-chart"] for tag in read.of("div") if "data-chart" in tag] == expected
    assert {"id_ood", "response"} <= {*expected}
    specs = {
        attributes["id"].removeprefix("spec-"): json.loads(text)
        for attributes, text in zip(read.of("script"), read.inside["script"], strict=True)
        if attributes.get("type") == "application/json"
    }
    assert [*specs] == expected
    assert all(spec["datasets"] for spec in specs.values())
    for name in expected:
        assert CHARTS[name].title in read.inside["h3" if CHARTS[name].folded else "h2"]
    # What a reader asks first is open, and the rest is folded under more.
    assert read.inside["h2"] == [
        *("Verdict", "ID against OOD accuracy", "Comparison", "Details"),
        *("Response to each parameter", "Difference on every split", "More"),
    ]
    places = ("verdict", "id_ood", "table", "details", "response", "shifts", "more", "details")
    links = [tag["href"] for tag in read.of("a") if tag["href"] != "#content"]
    assert links == [f"#{place}" for place in places]
    assert [tag for tag in read.of("details") if tag.get("class") == "part"]
    assert not any("open" in tag for tag in read.of("details"))
    assert "Provenance" in read.inside["h3"]
    assert [chart.name for chart in CHARTS.values() if chart.folded] == ["context"]


def test_a_seed_leads_to_its_run_where_mlflow_has_an_address() -> None:
    comparison, address = compare(kl_sweep(2), sweep="kl_weight"), "http://lab:5000"
    runs = [run for run in comparison.runs() if run.seed != 1]
    pages = {run.digest: f"{address}/#/experiments/1/runs/{run.digest}" for run in runs}
    served = html.RunPages(address, pages, is_own=False)
    exports = [html.Export(f"{HOSTILE}, seed 1", "carft-sweep export 'a b'")]
    data = ChartData(comparison)
    read = Read(html.document(comparison, data, run_pages=served, exports=exports))
    links = [tag for tag in read.of("a") if tag["href"].startswith(address)]
    assert {tag["href"] for tag in links} == {*pages.values()}
    assert {tag.get("target") for tag in links} == {"_blank"}
    of_tuned = [tag for tag in links if tag["href"] == pages["fine_tune-None-0"]]
    assert {tag["aria-label"] for tag in of_tuned} == {"fine_tune, seed 0, in MLflow"}
    assert len(of_tuned) == 2, "in the short table and the whole one, and not again of its merges"
    assert any("in MLflow, at http://lab:5000." in text for text in read.inside["p"])
    # A selected model is named with the command that exports it.
    (about,) = (text for text in read.inside["p"] if text.startswith("The selected model"))
    assert f"{HOSTILE}, seed 1" in about
    assert "carft-sweep export 'a b'" in read.inside["code"]
    page = html.document(comparison, data, run_pages=replace(served, is_own=True))
    assert "at http://lab:5000 while <code>carft-sweep ui</code> serves this home." in page
    page = html.document(comparison, data, run_pages=replace(served, pages={}))
    assert not any("MLflow" in text for text in Read(page).inside["p"])


def test_neither_users_nor_their_folders_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/scratch/ada")
    text = "/scratch/ada/x.yaml --set trial.data.root='/home/bob/data' C:\\Users\\Eve\\y /srv/data"
    assert html.without_user(text) == "~/x.yaml --set trial.data.root='~/data' ~\\y /srv/data"


def test_a_cell_has_the_verdict_warnings_and_rows_of_the_terminal(comparison: Comparison) -> None:
    changed = replace(comparison, warnings=("look out", HOSTILE), sweep=HOSTILE)
    read = Read(html.cell(changed))
    assert read.inside["strong"] == [changed.answer.lines[0]]
    sentences = [*changed.answer.lines, *changed.statistics]
    assert read.inside["p"][1 : len(sentences)] == sentences[1:]
    assert read.inside["li"] == ["look out", HOSTILE]
    assert read.inside["caption"][0].startswith(HOSTILE)
    names = [line.name.strip() for line in build_table(changed).lines]
    assert [name for name, _ in read.rows()] == names
    selected = [f"▸ {row.arm.label}" for row in changed.rows if row.selected]
    assert [name for name, bold in read.rows() if bold] == selected
    assert any(re.fullmatch(r"\d+\.\d ±\d+\.\d", cell) for cell in read.inside["td"])
    assert "▸ selected." in read.inside["small"][-1]
    params = {"prompts.classes": HOSTILE}
    car_ft = run("car_ft", 0, metrics(0.61, 0.3), trial=0, params=params)
    runs = [car_ft, run("fine_tune", 0, metrics(0.6, 0.3))]
    named = Read(html.cell(compare(runs, sweep="s")))
    assert any(HOSTILE in name for name, _ in named.rows())
    assert not {"script", "img"} & {tag for tag, _ in (*read.tags, *named.tags)}


def test_however_large_a_sweep_is_its_cell_and_its_repr_are_not() -> None:
    runs = [zero_shot()]
    for trial, seed in product(range(200), range(2)):
        at, height = 0.6 + trial / 1e5 + seed / 1e4, 0.34
        measured, merges = metrics(at, height), bent(at, height)
        own = {"trial": trial, "params": {KL: float(trial)}}
        runs.append(run("car_ft", seed, measured, merges=merges, **own))
        own = {"digest": f"fine_tune-{trial}-{seed}", "params": {"optim.lr": trial}}
        runs.append(run("fine_tune", seed, measured, merges=merges, **own))
    large = replace(compare(runs, sweep="many"), warnings=("odd",) * 1000)
    text = html.cell(large)
    read = Read(text)
    assert len(large.rows) > 5 * len(read.rows()) > 15
    assert any(bold for _, bold in read.rows())
    assert len(read.inside["li"]) == html.MOST_WARNINGS + 1
    assert read.inside["li"][-1] == "and 995 more, in its warnings"
    assert " 101 of 401 settings, the best by" in read.inside["small"][-1]
    assert len(text) < 300_000
    assert len(repr(large)) < 400
    assert repr(large).count("\n") == 1


def test_a_notebook_shows_a_comparison_by_itself() -> None:
    script = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from tests.tracking.made_up import kl_sweep\n"
        "from carft_sweep.tracking.comparison.compare import compare\n"
        "from carft_sweep.tracking.report.html import cell, show_in_notebooks\n"
        "shell, swept = InteractiveShell.instance(), compare(kl_sweep(), sweep='kl_weight')\n"
        "show_in_notebooks()\n"
        "shown, _ = shell.display_formatter.format(swept)\n"
        "assert shown['text/html'] == cell(swept)\n"
        "assert shown['text/plain'].startswith('<Comparison of')\n"
    )
    html.show_in_notebooks()  # where there is none it does nothing
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_chart_of_the_report_is_altair_s_own_and_as_wide_as_asked(comparison: Comparison) -> None:
    for name in ("id_ood", "response"):
        spec = html.chart(comparison, name, width=500).properties(title="mine").to_dict()
        assert spec["title"] == "mine"
        assert "background" not in spec
        widths = [panel["width"] for panel in spec.get("concat", [spec])]
        assert all(isinstance(width, int) and 0 < width <= 500 for width in widths)
    with pytest.raises(TrackingError, match="unknown chart 'id_odd'; did you mean 'id_ood'"):
        html.chart(comparison, "id_odd")
    with pytest.raises(TrackingError, match="kl_weight has nothing to show in the chart 'context'"):
        html.chart(comparison, "context")
