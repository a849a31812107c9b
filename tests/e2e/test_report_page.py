"""What a reader sees: the report in a real browser, light and dark, on a desk and on a phone."""

from __future__ import annotations

import json
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.sweeps.results.report import page
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.palette import colour_of
from carft_sweep.tracking.location import resolve_location
from carft_sweep.tracking.report.html import FIRST
from tests.e2e.browser import CHROMIUM, IS_THERE, SWITCHES, WHY_NOT, colours, show
from tests.services.processes import until
from tests.sweeps.shown_home import NAME, make

AXE = (files("axe_core_python") / "axe.min.js").read_text()

pytestmark = pytest.mark.skipif(not IS_THERE, reason=WHY_NOT)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with every part that there is, as a file."""
    home = Home(tmp_path_factory.mktemp("shown") / "home")
    make(home)
    sweep, file = find_ledger(home, NAME), home.path / "report.html"
    log = SentLog(home.sweep(NAME), resolve_location(home.path))
    log.note_experiment("1")
    for digest in (digest for setting in sweep.settings() for digest in setting.runs.values()):
        log.record(digest, digest[:32], "done")
    report = page(home, [sweep], comparison(sweep, RunStore(home.runs)))
    file.write_text(report.text, "utf-8")
    return file.as_uri()


def unfold(driver: webdriver.Chrome) -> list[str]:
    """Open every part under "More" and wait until all charts are drawn; which ones there are."""
    each(driver, "details.part", "area.open = true")
    until(lambda: not undrawn(driver), lambda: f"not drawn: {undrawn(driver)}")
    return charts(driver, "[data-chart]")


def each(driver: webdriver.Chrome, selector: str, value: str) -> list[Any]:
    """Of each such element the value of an expression in `area`."""
    script = "return [...document.querySelectorAll(arguments[0])].map((area) => "
    values: list[Any] = driver.execute_script(f"{script}{value})", selector)
    return values


def charts(driver: webdriver.Chrome, selector: str) -> list[str]:
    return each(driver, selector, "area.dataset.chart")


def page_width(driver: webdriver.Chrome) -> int:
    width: int = driver.execute_script("return document.documentElement.scrollWidth")
    return width


def undrawn(driver: webdriver.Chrome) -> list[str]:
    return charts(driver, "[data-chart]:not(.drawn)")


def console(driver: webdriver.Chrome) -> list[str]:
    """All that was written there since it was last asked: errors, warnings, and anything else."""
    return [entry["message"] for entry in driver.get_log("browser")]


def violations(driver: webdriver.Chrome, *, contrast: bool) -> list[str]:
    """What axe says against the page as it is shown now: of contrast, or of all else.

    Whether text in a drawing is readable it cannot tell, and looks for long.
    """
    chosen: dict[str, Any] = {"rules": {"color-contrast": {"enabled": False}}}
    if contrast:
        chosen = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    where = "{exclude: ['svg.marks']}" if contrast else "document"
    options = json.dumps({"resultTypes": ["violations"], **chosen})
    driver.execute_script(f"if (!window.axe) {{ {AXE} }}")
    result = driver.execute_async_script(
        f"const [done] = arguments;"
        f"axe.run({where}, {options}).then(done, (error) => done({{error: `${{error}}`}}))"
    )
    assert "error" not in result, result
    assert result["passes"]
    return [
        f"{of['impact']} {of['id']}: {of['help']}: {of['nodes'][0]['html'][:160]}"
        for of in result["violations"]
    ]


def asked_for(driver: webdriver.Chrome) -> list[str]:
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = (event for event in events if event["method"] == "Network.requestWillBeSent")
    return [event["params"]["request"]["url"] for event in asked]


def background(driver: webdriver.Chrome) -> str:
    return str(each(driver, "body", "getComputedStyle(area).backgroundColor")[0])


def axis_title(driver: webdriver.Chrome) -> str | None:
    """Found and read in one step, since a chart may be drawn again between two."""
    path = "#id_ood svg .role-axis-title text"
    return next(iter(each(driver, path, "area.getAttribute('fill')")), None)


def test_on_a_desk_everything_is_drawn_without_network_and_reads_well_in_both_schemes(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=1280)
    assert unfold(driver) == [*CHARTS]
    for details in ("#id_ood > details", "#table details", "#provenance > details"):
        driver.find_element(By.CSS_SELECTOR, f"{details} > summary").click()
    rows = driver.find_elements(By.CSS_SELECTOR, '[data-of="id_ood"] tbody tr')
    assert len(rows) > 10
    light = background(driver), axis_title(driver)
    assert violations(driver, contrast=False) == []
    assert violations(driver, contrast=True) == []

    colours(driver, "dark")
    until(lambda: axis_title(driver) != light[1], lambda: "the charts keep their colours")
    assert background(driver) != light[0]
    assert violations(driver, contrast=True) == []
    assert console(driver) == []
    assert {address for address in asked_for(driver) if not address.startswith("data:")} == {url}


def test_on_a_phone_page_and_charts_are_as_wide_as_the_screen_and_the_table_can_be_used(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=390)
    assert unfold(driver) == [*CHARTS]
    widths = each(
        driver, "[data-chart]", "[area.dataset.chart, area.scrollWidth, area.clientWidth]"
    )
    assert [name for name, width, place in widths if width > place + 1] == []
    assert page_width(driver) == 390
    assert console(driver) == []
    # The OOD mean stands beside ID, and names stay where they are.
    row = "#table table:first-of-type thead tr:first-child > *"
    right = dict(each(driver, row, "[area.textContent, area.getBoundingClientRect().right]"))
    for name in ("ID test", "OOD mean"):
        assert right[name] <= 390, name
    scroll = (
        "const table = document.querySelector('#table table');"
        "table.parentElement.scrollLeft = 500;"
        "const name = table.tBodies[0].rows[0].cells[0];"
        "return [table.parentElement.scrollLeft, name.getBoundingClientRect().left]"
    )
    scrolled, edge = driver.execute_script(scroll)
    assert scrolled > 0
    assert edge == pytest.approx(16, abs=1)
    # A seed is a link to its run.
    links = driver.find_elements(By.CSS_SELECTOR, "#table tr.selected .runs a")
    assert [link.text for link in links if link.is_displayed()] == ["0", "1", "2"]
    runs = "http://127.0.0.1:5000/#/experiments/1/"
    assert all((link.get_attribute("href") or "").startswith(runs) for link in links)


@pytest.mark.parametrize(("width", "screen"), [(1400, 600), (400, 900)])
def test_verdict_and_chart_are_on_the_first_screen_and_every_word_is_readable(
    driver: webdriver.Chrome, url: str, width: int, screen: int
) -> None:
    show(driver, url, width=width)
    unfold(driver)
    top = "area.getBoundingClientRect().top"
    sentences = each(driver, "#verdict p", top)
    for place in (each(driver, "[data-chart=id_ood] svg.marks", top)[0], sentences[0]):
        assert place < screen
    assert len(sentences) == FIRST + 1, "and a link to the others"
    assert page_width(driver) == width
    assert min(sizes(driver, "svg.marks")) >= 12


def sizes(driver: webdriver.Chrome, selector: str) -> list[float]:
    """Of the letters in drawings, in pixels as they are shown."""
    is_seen = "area.textContent.trim() && area.getAttribute('opacity') !== '0'"
    scale = "Math.hypot(area.getScreenCTM().c, area.getScreenCTM().d)"
    size = f"{is_seen} ? parseFloat(getComputedStyle(area).fontSize) * {scale} : null"
    letters = [shown for shown in each(driver, f"{selector} text", size) if shown is not None]
    assert letters
    return letters


def test_a_table_that_is_wider_than_a_phone_says_so_and_a_click_sorts_it(
    driver: webdriver.Chrome, url: str
) -> None:
    words_below = "getComputedStyle(area.querySelector('caption'), '::after').content"
    value = f"[area.scrollWidth > area.clientWidth + 1, {words_below}]"
    for width in (400, 2000):
        show(driver, url, width=width)
        time.sleep(0.1)
        ((is_wider, words),) = each(driver, "#table > .wide", value)
        assert is_wider == ("scroll" in words) == (width == 400)
    path = '//table[contains(@class, "numbers")][1]//th[normalize-space()="OOD mean"]'
    head = driver.find_element(By.XPATH, path)
    cells = (
        "return [...arguments[0].closest('table').tBodies[0].rows]"
        ".map((row) => parseFloat(row.cells[arguments[0].cellIndex].textContent))"
    )
    for direction in ("descending", "ascending"):
        head.find_element(By.TAG_NAME, "button").click()
        assert head.get_attribute("aria-sort") == direction
        column = driver.execute_script(cells, head)
        assert column == sorted(column, reverse=direction == "descending")
        assert len({*column}) > 2


def test_the_numbers_behind_a_chart_have_the_names_of_its_axes(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=1400)
    unfold(driver)
    for details in driver.find_elements(By.CSS_SELECTOR, "details.data > summary"):
        details.click()

    def heads(name: str) -> set[str]:
        return {*each(driver, f"[data-of={name}] th", "area.textContent")}

    until(lambda: all(map(heads, CHARTS)))  # a chart that is drawn late has its table late
    assert {"ID test top-1 (%)", "OOD mean top-1 (%)", "method", "setting"} <= heads("id_ood")
    internal = {"on show", "front", "standing", "mean", "rank", "ID test", "low", "high"}
    assert [name for name in CHARTS if internal & heads(name)] == []


def test_what_is_open_is_drawn_at_once_and_what_is_folded_when_it_is_unfolded(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=1280, height=300)
    folded = [name for name, chart in CHARTS.items() if chart.folded]
    assert undrawn(driver) == folded, "when it is loaded, without scrolling"
    for part in driver.find_elements(By.CSS_SELECTOR, "details.part > summary")[:1]:
        part.click()
    until(lambda: undrawn(driver) != folded, lambda: "it is not drawn")
    assert undrawn(driver) == folded[1:]


def test_a_picture_from_the_command_line_has_its_charts(url: str, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    switches = [*(f"--{name}" for name in SWITCHES), "--window-size=1280,3000"]
    command = [str(CHROMIUM), *switches, f"--screenshot={picture}", url]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for name in ("fine_tune", "car_ft"):
        colour = colour_of(name, ())
        parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (pixels == parts).all(axis=1).sum() > 300, f"the symbols of {name}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_paper_nothing_is_cut_and_everything_is_light(
    driver: webdriver.Chrome, url: str, scheme: Literal["light", "dark"]
) -> None:
    """A4 leaves 703 pixels between its margins, and Chromium asks for print styles."""
    show(driver, url, width=1280, scheme=scheme)
    driver.execute_script("document.querySelector('#table details').open = true")
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    open_ones = [name for name, chart in CHARTS.items() if not chart.folded]
    assert charts(driver, "[data-chart].drawn") == open_ones
    size = {"width": 703, "height": 1032, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [feature]})
    try:
        is_cut = "area.checkVisibility() && area.getBoundingClientRect().right > 704"
        cut = each(
            driver, "table, svg.marks, p, figure, pre", f"{is_cut} && area.outerHTML.slice(0, 80)"
        )
        assert [part for part in cut if part] == []
        width = "area.getBoundingClientRect().width"
        assert min(each(driver, "#id_ood svg.marks, #shifts svg.marks", width)) > 650
        assert min(sizes(driver, "#id_ood svg.marks")) >= 8 * 96 / 72, "points on paper"
        assert background(driver) == "rgb(255, 255, 255)"
        assert axis_title(driver) == "#1b1f24"
        for hidden in ("nav", "#more", "details.data", ".runs", ".links"):
            assert not driver.find_element(By.CSS_SELECTOR, hidden).is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert console(driver) == []
