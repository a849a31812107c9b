"""What a user sees: the sweep in MLflow's own pages, in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.browser import IS_THERE, WHY_NOT, printed, show
from tests.e2e.conftest import make_tiny

SECONDS = 90
ALL_CHARTS = 2600
"""Pixels of a window with all charts: MLflow draws those that are seen."""
COLUMNS = ("id/test/top1", "ood/mean/top1", "gap/top1", "algorithm.kl_weight")

pytestmark = pytest.mark.skipif(not IS_THERE, reason=WHY_NOT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path, images: Path) -> Path:
    """A home with one small sweep; or the one that CARFT_SHOWN_HOME names."""
    if "CARFT_SHOWN_HOME" in os.environ:
        return Path(os.environ["CARFT_SHOWN_HOME"])
    make = make_tiny(tmp_path_factory.mktemp("shown"), tiny_clip_files, images)
    baselines = ["zero_shot", "fine_tune"]
    sweep = make("kl_weight", [1.0], epochs=1, baselines=baselines, report={"model": False})
    sweep.in_process("run")
    return sweep.home


@pytest.fixture(scope="module")
def lines(home: Path) -> Iterator[list[str]]:
    with printed(home) as printed_lines:
        yield printed_lines


@pytest.fixture(scope="module")
def links(lines: list[str]) -> Mapping[str, str]:
    """The addresses that it prints, by the word before them; the first one is `at`."""
    return {words[-2]: words[-1] for words in map(str.split, lines) if "http" in words[-1]}


@pytest.fixture(scope="module")
def address(links: Mapping[str, str]) -> str:
    return links["at"].partition("/#")[0]


def wait_for(driver: webdriver.Chrome, by: str, selector: str) -> WebElement:
    present = expected_conditions.presence_of_element_located((by, selector))
    return WebDriverWait(driver, SECONDS).until(present, f"{selector} did not appear")


def show_column(driver: webdriver.Chrome, name: str) -> None:
    search = wait_for(driver, By.CSS_SELECTOR, 'input[placeholder="Search columns"]')
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(name)
    # What was searched for is an element of its own within a longer name.
    exact = f'//div[contains(@class,"tree-treenode")][normalize-space(.)="{name}"]'
    wait_for(driver, By.XPATH, f'{exact}//span[contains(@class,"tree-checkbox")]').click()


def test_the_page_of_the_experiment_leads_to_the_sweeps_and_nests_their_comparable_runs(
    driver: webdriver.Chrome, address: str
) -> None:
    show(driver, f"{address}/#/experiments/1/runs", width=1900)
    parent = wait_for(driver, By.LINK_TEXT, "kl_weight")
    line = wait_for(driver, By.XPATH, "//*[contains(text(), 'Sweeps with their answers')]")
    sweeps = line.find_element(By.LINK_TEXT, "open").get_attribute("href")
    assistant = driver.find_elements(By.CSS_SELECTOR, "[data-assistant-ui]")
    assert assistant, "MLflow no longer marks what ui_app.py hides"
    assert not [part for part in assistant if part.is_displayed()]
    assert not driver.find_elements(By.LINK_TEXT, "zero_shot"), "children stand beside the sweep"
    parent.find_element(By.XPATH, 'ancestor::div[@role="presentation"][1]//button').click()
    for child in ("zero_shot", "fine_tune s0", "car_ft kl_weight=1 s0"):
        wait_for(driver, By.LINK_TEXT, child)
    wait_for(driver, By.CSS_SELECTOR, '[data-testid="column-selection-dropdown"]').click()
    for name in COLUMNS:
        show_column(driver, name)
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    heads = [head.text for head in driver.find_elements(By.CSS_SELECTOR, ".ag-header-cell")]
    assert set(COLUMNS) <= {*heads}
    assert_accuracies(values_of(driver, "id/test/top1"))
    if "CARFT_SCREENSHOT" in os.environ:
        driver.save_screenshot(os.environ["CARFT_SCREENSHOT"])
    assert sweeps is not None
    go(driver, sweeps)
    assert_sweeps_are_shown_with_their_answers_and_arms(driver)


def test_the_description_of_a_sweep_tells_its_verdict_and_leads_to_the_report(
    driver: webdriver.Chrome, address: str
) -> None:
    go(driver, f"{address}/#/experiments/1/runs")
    wait_for(driver, By.LINK_TEXT, "kl_weight").click()
    link = wait_for(driver, By.LINK_TEXT, "The report, with charts")
    described = link.find_element(By.XPATH, "ancestor::div[.//*[contains(., 'Selected.')]][1]").text
    assert "car_ft" in described
    page = link.get_attribute("href")
    assert page is not None
    show(driver, page, width=1900)
    frame = wait_for(driver, By.CSS_SELECTOR, "iframe.mlflow-html-iframe")
    driver.switch_to.frame(frame)
    try:
        assert wait_for(driver, By.TAG_NAME, "h1").text == "kl_weight"
        wait_for(driver, By.CSS_SELECTOR, "[data-chart].drawn svg")
        address_inside = driver.execute_script("return location.href")
    finally:
        driver.switch_to.default_content()
    logged = driver.get_log("browser")
    assert [entry["message"] for entry in logged if address_inside in entry["message"]] == []


def go(driver: webdriver.Chrome, url: str, *, height: int = 800) -> None:
    """Open a link in a window that has another page: MLflow's addresses differ behind the #."""
    show(driver, "about:blank", width=1900, height=height)
    show(driver, url, width=1900, height=height)


def values_of(driver: webdriver.Chrome, column: str) -> list[float]:
    cells = driver.find_elements(By.CSS_SELECTOR, f'[col-id*="{column}"][role="gridcell"]')
    return [float(cell.text.rstrip("…")) for cell in cells if cell.text not in {"", "-"}]


def assert_nothing_is_in_the_way(driver: webdriver.Chrome) -> None:
    assert "machine_learning" in driver.current_url
    assert not driver.find_elements(By.CSS_SELECTOR, '[role="dialog"]')
    headings = [heading.text for heading in driver.find_elements(By.CSS_SELECTOR, "h1, h2, h3")]
    assert not [text for text in headings if "race" in text or "GenAI" in text], headings


def test_the_first_link_of_ui_lands_on_the_sweeps_with_what_they_came_to(
    driver: webdriver.Chrome, lines: list[str], links: Mapping[str, str]
) -> None:
    assert any("usage data does not apply" in line for line in lines)
    go(driver, links["at"])
    assert_sweeps_are_shown_with_their_answers_and_arms(driver)


def assert_sweeps_are_shown_with_their_answers_and_arms(driver: webdriver.Chrome) -> None:
    """A sweep comes first, below it what stands for each algorithm, with its accuracies."""
    wait_for(driver, By.LINK_TEXT, "kl_weight")
    wait_for(driver, By.CSS_SELECTOR, '[col-id*="mean/ood/mean/top1"][role="gridcell"]')
    assert_nothing_is_in_the_way(driver)
    names = [link.text for link in driver.find_elements(By.CSS_SELECTOR, "a[href*='/runs/']")]
    rows = names[names.index("kl_weight") :]
    assert rows[1] == "zero_shot"
    assert [name for name in rows if name.startswith("fine_tune")]
    assert [name for name in rows if "▸" in name]
    for column in ("`mean/ood/mean/top1`", "`mean/id/test/top1`"):
        assert_accuracies(values_of(driver, column))
    answers = driver.find_elements(By.CSS_SELECTOR, '[col-id*="carft.answer"][role="gridcell"]')
    assert [answer.text for answer in answers if answer.text.startswith("UNDECIDED")]


def assert_accuracies(values: list[float]) -> None:
    assert len(values) >= 3
    assert all(0 <= value <= 1 for value in values)


def test_the_link_to_its_arms_lands_on_a_table_of_them_by_ood(
    driver: webdriver.Chrome, links: Mapping[str, str]
) -> None:
    go(driver, links["arms"])
    wait_for(driver, By.PARTIAL_LINK_TEXT, "car_ft kl_weight=1 (")
    assert_nothing_is_in_the_way(driver)
    assert not driver.find_elements(By.LINK_TEXT, "kl_weight")
    oods = values_of(driver, "`mean/ood/mean/top1`")
    assert len(oods) >= 3
    assert oods == sorted(oods, reverse=True)


@pytest.mark.slow  # tests/tracking has the settings of the charts that MLflow draws here
def test_arms_and_runs_have_charts_and_the_runs_a_view_with_what_is_varied(
    driver: webdriver.Chrome, links: Mapping[str, str]
) -> None:
    go(driver, f"{links['arms']}-runs")
    wait_for(driver, By.LINK_TEXT, "car_ft kl_weight=1 s0")
    for column in ("metrics.`ood/mean/top1`", "`wise_ft_0.5/ood/mean/top1`"):
        assert values_of(driver, column), column
    against_ood = ("mean/id/test/top1", "arm", "algorithm.kl_weight")
    for page, titles in (
        (f"{links['arms']}-runs", ["train/loss", "curve/wise_ft/ood/mean/top1"]),
        (links["arms"], [f"{drawn} vs. mean/ood/mean/top1" for drawn in against_ood]),
    ):
        go(driver, f"{page}&compareRunsMode=CHART", height=ALL_CHARTS)
        for title in titles:
            wait_for(driver, By.CSS_SELECTOR, f'h4[title="{title}"]')
    assert "kl_weight: arms" in driver.find_element(By.TAG_NAME, "body").text


def test_the_page_of_a_sweep_has_its_charts_and_the_values_of_the_selected_arm(
    driver: webdriver.Chrome, links: Mapping[str, str]
) -> None:
    go(driver, links["sweep"])
    wait_for(driver, By.XPATH, '//button[contains(., "Show more")]').click()
    assert_nothing_is_in_the_way(driver)
    image = wait_for(driver, By.CSS_SELECTOR, 'img[src*="id_ood.png"]')
    drawn = "return arguments[0].complete && arguments[0].naturalWidth > 0"
    WebDriverWait(driver, SECONDS).until(lambda _: driver.execute_script(drawn, image))
    wait_for(driver, By.LINK_TEXT, "vs_reference/ood/mean/top1")
