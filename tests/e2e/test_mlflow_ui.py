"""What a user sees: the sweep in MLflow's own pages, in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.browser import IS_THERE, WHY_NOT, browser, close_assistant, served, show
from tests.e2e.conftest import make_tiny

SECONDS = 90
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
    sweep.call("run", "--engine", "local")
    return sweep.home


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """Where `carft-sweep ui` serves it."""
    with served(home) as found:
        yield found


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with browser() as opened:
        yield opened


def wait_for(driver: webdriver.Chrome, by: str, what: str) -> WebElement:
    there = expected_conditions.presence_of_element_located((by, what))
    return WebDriverWait(driver, SECONDS).until(there, f"{what} did not appear")


def show_column(driver: webdriver.Chrome, name: str) -> None:
    search = wait_for(driver, By.CSS_SELECTOR, 'input[placeholder="Search columns"]')
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(name)
    exact = f'//div[contains(@class,"tree-treenode")][.//*[normalize-space(text())="{name}"]]'
    wait_for(driver, By.XPATH, f'{exact}//span[contains(@class,"tree-checkbox")]').click()


def test_the_runs_of_a_sweep_are_nested_finished_and_comparable(
    driver: webdriver.Chrome, address: str
) -> None:
    show(driver, f"{address}/#/experiments/1/runs", width=1900)
    parent = wait_for(driver, By.LINK_TEXT, "kl_weight")
    close_assistant(driver)
    assert not driver.find_elements(By.LINK_TEXT, "zero_shot"), "children stand beside the sweep"
    parent.find_element(By.XPATH, 'ancestor::div[@role="presentation"][1]//button').click()
    wait_for(driver, By.LINK_TEXT, "zero_shot")
    wait_for(driver, By.LINK_TEXT, "fine_tune seed 0")
    wait_for(driver, By.LINK_TEXT, "car_ft kl_weight=1 seed 0")

    wait_for(driver, By.CSS_SELECTOR, '[data-testid="column-selection-dropdown"]').click()
    for name in COLUMNS:
        show_column(driver, name)
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    heads = [head.text for head in driver.find_elements(By.CSS_SELECTOR, ".ag-header-cell")]
    assert set(COLUMNS) <= {*heads}
    cells = driver.find_elements(By.CSS_SELECTOR, '[col-id*="id/test/top1"][role="gridcell"]')
    values = [cell.text for cell in cells if cell.text not in {"", "-"}]
    assert len(values) >= 3
    assert all(0 <= float(value) <= 1 for value in values)
    if "CARFT_SCREENSHOT" in os.environ:
        driver.save_screenshot(os.environ["CARFT_SCREENSHOT"])


def test_the_description_of_a_sweep_tells_its_verdict_and_leads_to_the_report(
    driver: webdriver.Chrome, address: str
) -> None:
    show(driver, f"{address}/#/experiments/1/runs", width=1900)
    wait_for(driver, By.LINK_TEXT, "kl_weight").click()
    link = wait_for(driver, By.LINK_TEXT, "The report, with charts and images")
    described = link.find_element(By.XPATH, "ancestor::div[.//*[contains(., 'Verdict.')]][1]").text
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
