"""What a user sees: the sweep in MLflow's own pages, in a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 90
SMALL = (
    "data.family=icon_shift_dev",
    "data.train_fraction=0.1",
    "optim.epochs=1",
    "seeds=[0]",
    "parameters.algorithm.kl_weight.values=[1.0]",
)
COLUMNS = ("id/test/top1", "ood/mean/top1", "gap/top1", "algorithm.kl_weight")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs a browser: the packages chromium and chromium-driver",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one small sweep; or the one that CARFT_SHOWN_HOME names."""
    if "CARFT_SHOWN_HOME" in os.environ:
        return Path(os.environ["CARFT_SHOWN_HOME"])
    home = tmp_path_factory.mktemp("home")
    changes = [word for change in SMALL for word in ("--set", change)]
    subprocess.run(
        [sys.executable, "-m", "sweeps", "--home", str(home), "run", "kl_weight", *changes],
        check=True,
        timeout=240,
    )
    return home


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """Where `carft-sweep ui` serves it."""
    command = [sys.executable, "-m", "sweeps", "--home", str(home), "ui", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Headless Chromium that looks nothing up on its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for switch in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1900,800",
    ):
        options.add_argument(f"--{switch}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(browser: webdriver.Chrome, by: str, what: str) -> WebElement:
    there = expected_conditions.presence_of_element_located((by, what))
    return WebDriverWait(browser, SECONDS).until(there, f"{what} did not appear")


def show_column(browser: webdriver.Chrome, name: str) -> None:
    search = wait_for(browser, By.CSS_SELECTOR, 'input[placeholder="Search columns"]')
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(name)
    exact = f'//div[contains(@class,"tree-treenode")][.//*[normalize-space(text())="{name}"]]'
    wait_for(browser, By.XPATH, f'{exact}//span[contains(@class,"tree-checkbox")]').click()


def test_the_runs_of_a_sweep_are_nested_finished_and_comparable(
    browser: webdriver.Chrome, address: str
) -> None:
    browser.get(f"{address}/#/experiments/1/runs")
    parent = wait_for(browser, By.LINK_TEXT, "kl_weight")
    with contextlib.suppress(StopIteration):
        panel = '[data-component-id="mlflow.assistant.chat_panel.close"]'
        next(iter(browser.find_elements(By.CSS_SELECTOR, panel))).click()
    assert not browser.find_elements(By.LINK_TEXT, "zero_shot"), "children stand beside the sweep"
    parent.find_element(By.XPATH, 'ancestor::div[@role="presentation"][1]//button').click()
    wait_for(browser, By.LINK_TEXT, "zero_shot")
    wait_for(browser, By.LINK_TEXT, "fine_tune seed 0")
    wait_for(browser, By.LINK_TEXT, "car_ft kl_weight=1 seed 0")

    wait_for(browser, By.CSS_SELECTOR, '[data-testid="column-selection-dropdown"]').click()
    for name in COLUMNS:
        show_column(browser, name)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, ".ag-header-cell")]
    assert set(COLUMNS) <= {*heads}
    cells = browser.find_elements(By.CSS_SELECTOR, '[col-id*="id/test/top1"][role="gridcell"]')
    values = [cell.text for cell in cells if cell.text not in {"", "-"}]
    assert len(values) >= 3
    assert all(0 <= float(value) <= 1 for value in values)
    if "CARFT_SCREENSHOT" in os.environ:
        browser.save_screenshot(os.environ["CARFT_SCREENSHOT"])
