"""What a reader sees: the report in a real browser, light and dark, on a desk and on a phone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from sweeps.home import Home
from sweeps.ledger.runs import RunStore
from sweeps.ledger.trials import find_ledger
from sweeps.results.records import comparison
from sweeps.results.report import page
from tests.e2e.browser import IS_THERE, WHY_NOT, browser, colours, show
from tests.sweeps.shown_home import NAME, make
from tracking.charts import CHARTS

AXE = (files("axe_core_python") / "axe.min.js").read_text()
SECONDS = 30

pytestmark = pytest.mark.skipif(not IS_THERE, reason=WHY_NOT)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with every part that there is, as a file."""
    home = Home(tmp_path_factory.mktemp("shown") / "home")
    make(home)
    sweep, file = find_ledger(home, NAME), home.path / "report.html"
    page(home, [sweep], comparison(sweep, RunStore(home.runs))).write(file)
    return file.as_uri()


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with browser() as opened:
        yield opened


def draw_all(driver: webdriver.Chrome) -> list[str]:
    """Scroll through the page until every chart is drawn; which ones there are."""
    scroll = (
        "const left = [...document.querySelectorAll('[data-chart]:not(.drawn)')];"
        "left[0]?.scrollIntoView();"
        "return left.map((area) => area.dataset.chart)"
    )
    until = time.monotonic() + SECONDS
    while left := driver.execute_script(scroll):
        assert time.monotonic() < until, f"not drawn: {left}"
        time.sleep(0.05)
    names: list[str] = driver.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map((area) => area.dataset.chart)"
    )
    return names


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
        f"{found['impact']} {found['id']}: {found['help']}: {found['nodes'][0]['html'][:160]}"
        for found in result["violations"]
    ]


def asked_for(driver: webdriver.Chrome) -> list[str]:
    """Every address that the page has asked for."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def background(driver: webdriver.Chrome) -> str:
    script = "return getComputedStyle(document.body).backgroundColor"
    return str(driver.execute_script(script))


def axis_title(driver: webdriver.Chrome) -> str | None:
    path = "#id_ood svg .role-axis-title text"
    return driver.find_element(By.CSS_SELECTOR, path).get_attribute("fill")


def test_on_a_desk_everything_is_drawn_without_network_and_reads_well_in_both_schemes(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=1280)
    assert draw_all(driver) == [*CHARTS]
    for details in ("#table details", "#id_ood > details", "#provenance details"):
        driver.find_element(By.CSS_SELECTOR, f"{details} > summary").click()
    rows = driver.find_elements(By.CSS_SELECTOR, '[data-of="id_ood"] tbody tr')
    assert len(rows) > 10
    light = background(driver), axis_title(driver)
    assert violations(driver, contrast=False) == []
    assert violations(driver, contrast=True) == []

    colours(driver, "dark")
    until = time.monotonic() + SECONDS
    while axis_title(driver) == light[1]:
        assert time.monotonic() < until, "the charts keep their colours"
        driver.execute_script("document.querySelector('#id_ood').scrollIntoView()")
        time.sleep(0.05)
    assert background(driver) != light[0]
    assert violations(driver, contrast=True) == []
    assert console(driver) == []
    assert {address for address in asked_for(driver) if not address.startswith("data:")} == {url}


def test_on_a_phone_the_page_is_as_wide_as_the_screen_and_so_is_every_chart(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=390)
    assert draw_all(driver) == [*CHARTS]
    wide = driver.execute_script(
        "return [...document.querySelectorAll('[data-chart]')]"
        ".filter((area) => area.scrollWidth > area.clientWidth + 1)"
        ".map((area) => `${area.dataset.chart} ${area.scrollWidth}`)"
    )
    assert wide == []
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    assert console(driver) == []


def test_a_click_sorts_the_table_and_another_one_turns_it(
    driver: webdriver.Chrome, url: str
) -> None:
    show(driver, url, width=1280)
    path = '//table[contains(@class, "numbers")][1]//th[normalize-space()="OOD mean"]'
    head = driver.find_element(By.XPATH, path)
    column = int(driver.execute_script("return arguments[0].cellIndex", head))
    orders = []
    for direction in ("descending", "ascending"):
        head.find_element(By.TAG_NAME, "button").click()
        assert head.get_attribute("aria-sort") == direction
        cells = driver.execute_script(
            "return [...arguments[0].closest('table').tBodies[0].rows]"
            f".map((row) => parseFloat(row.cells[{column}].textContent))",
            head,
        )
        orders.append(cells)
    assert orders[0] == sorted(orders[0], reverse=True)
    assert orders[1] == sorted(orders[0])
    assert len({*orders[0]}) > 2
