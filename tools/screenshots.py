"""The pictures of report and MLflow in README and docs, of a sweep that has ended.

    python -m tools.screenshots HOME SWEEP docs/images

They are taken in headless Chromium, and reduced to a palette. HOME's MLflow must hold the report:
it is logged when a sweep ends.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.results.artifacts import PAGE
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.location import resolve_location
from carft_sweep.tracking.store.mlflow_pages import run_page, runs_page
from tests.e2e.browser import browser, photograph, served, show

SECONDS = 60
NARROW = 600
"""Pixels below which MLflow's side bar leaves no place for anything else."""
DRAWN = (
    "return [...document.querySelectorAll('[data-chart]:not(.drawn)')]"
    ".every((area) => area.closest('details:not([open])'))"
)
"""Whether every chart is drawn that is not folded."""


class Shot(NamedTuple):
    """A part of the report, from the top of a section on."""

    name: str
    width: int
    height: int
    scheme: Literal["light", "dark"]
    begins_at: str | None
    """The id of the section; None: the page."""


WIDE, SLIM = 1400, 400
"""Pixels of a desk's window, and of a phone's."""
SHOTS = (
    Shot("report-desktop", WIDE, 1700, "light", None),
    Shot("report-dark", WIDE, 1640, "dark", "id_ood"),
    Shot("report-phone", SLIM, 1500, "light", "table"),
    Shot("report-phone-dark", SLIM, 1500, "dark", "id_ood"),
)
ANSWER = "id_ood"
"""The chart of README's picture."""
ANSWER_WIDTH = 880
"""Pixels of the window in which it is drawn, at two points each: in a wider one the verdict would
stand beside it."""
COLOURS = 256
"""Colours of a picture: more are not seen in lines, letters and icons."""


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("folder", type=Path)
    args, began = parser.parse_args(), time.time()
    home = Home(args.home.absolute())
    args.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "carft_sweep", "--home", str(home.path)]
    page = (args.folder / "report.html").absolute()
    subprocess.run([*command, "report", args.sweep, "--out", str(page)], check=True)
    with browser() as driver:
        for shot in SHOTS:
            _report(driver, page.as_uri(), shot, args.folder)
        _answer(driver, page.as_uri(), "light", args.folder / "answer.png")
        _answer(driver, page.as_uri(), "dark", args.folder / "answer-dark.png")
        page.unlink()
        with served(home.path) as address:
            run = SentLog(home.sweep(args.sweep), resolve_location(home.path)).run_ids()[""]
            _arms(driver, f"{address}/{runs_page('1', run)}", args.folder / "mlflow-arms.png")
            _overview(driver, f"{address}/{run_page('1', run)}", args.folder / "mlflow-sweep.png")
            url = f"{address}/{run_page('1', run, PAGE)}"
            _mlflow(driver, url, WIDE, 1000, args.folder / "mlflow-report.png")
            _mlflow(driver, url, SLIM, 800, args.folder / "mlflow-report-phone.png")
    for path in args.folder.glob("*.png"):
        if path.stat().st_mtime >= began:
            _reduce(path)


def _report(driver: webdriver.Chrome, url: str, shot: Shot, folder: Path) -> None:
    show(driver, url, width=shot.width, scheme=shot.scheme)
    _wait(driver, lambda: bool(driver.execute_script(DRAWN)))
    driver.execute_script("scrollTo(0, 0)")
    top = 0
    if shot.begins_at is not None:
        edge = f"return document.getElementById('{shot.begins_at}').getBoundingClientRect().top"
        top = round(driver.execute_script(edge))
    photograph(driver, folder / f"{shot.name}.png", top=top, height=shot.height)


def _answer(
    driver: webdriver.Chrome, url: str, scheme: Literal["light", "dark"], path: Path
) -> None:
    """Photograph the chart alone, without its menu, on the page's colour."""
    show(driver, url, width=ANSWER_WIDTH, scheme=scheme, scale=2)
    _wait(driver, lambda: bool(driver.execute_script(DRAWN)))
    chart = f"#{ANSWER} [data-chart]"
    driver.execute_script(f"document.querySelector('{chart} details').remove()")
    area = driver.execute_script(
        "scrollTo(0, 0);"
        f"const area = document.querySelector('{chart} svg').getBoundingClientRect();"
        "return [area.top, area.height]"
    )
    photograph(driver, path, top=round(area[0]) - 8, height=round(area[1]) + 16)


def _reduce(path: Path) -> None:
    """Keep the most frequent colours, and the nearest of them for others: a part of the bytes.

    Not by Pillow's own palettes, in which white is no longer quite white.
    """
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    colours, places, counts = np.unique(
        pixels.reshape(-1, 3).astype(np.int32), axis=0, return_inverse=True, return_counts=True
    )
    frequent = colours[np.argsort(-counts, kind="stable")[:COLOURS]]
    nearest = [int(((frequent - colour) ** 2).sum(axis=1).argmin()) for colour in colours]
    indices = np.array(nearest, np.uint8)[places].reshape(pixels.shape[:2])
    reduced = Image.fromarray(indices, "P")
    reduced.putpalette(frequent.astype(np.uint8).tobytes())
    reduced.save(path, optimize=True)


def _arms(driver: webdriver.Chrome, url: str, path: Path) -> None:
    """Photograph the view of a sweep's arms."""
    show(driver, url, width=WIDE, height=720)

    def is_there() -> bool:
        return bool(driver.find_elements(By.CSS_SELECTOR, '[col-id*="mean/ood"][role="gridcell"]'))

    _wait(driver, is_there)
    driver.save_screenshot(str(path))


def _overview(driver: webdriver.Chrome, url: str, path: Path) -> None:
    """Photograph the sweep's own page: description with its charts, runs, tags."""
    show(driver, "about:blank", width=WIDE, height=1000)
    show(driver, url, width=WIDE, height=1000)

    def is_there() -> bool:
        for button in driver.find_elements(By.XPATH, '//button[contains(., "Show more")]'):
            button.click()
        charts = driver.find_elements(By.CSS_SELECTOR, "img[src*='id_ood.png']")
        return bool(charts) and driver.execute_script("return arguments[0].complete", charts[0])

    _wait(driver, is_there)
    driver.save_screenshot(str(path))


def _mlflow(driver: webdriver.Chrome, url: str, width: int, height: int, path: Path) -> None:
    """Photograph the report in its frame among the artifacts, with its charts drawn."""
    show(driver, "about:blank", width=width, height=height)
    show(driver, url, width=width, height=height)

    def is_drawn() -> bool:
        frames = driver.find_elements(By.CSS_SELECTOR, "iframe.mlflow-html-iframe")
        if not frames:
            return False
        driver.switch_to.frame(frames[0])
        try:
            return bool(driver.execute_script(f"{DRAWN} && location.protocol === 'blob:'"))
        finally:
            driver.switch_to.default_content()

    _wait(driver, is_drawn)
    if width < NARROW:
        driver.find_element(By.CSS_SELECTOR, '[aria-label="Toggle sidebar"]').click()
        time.sleep(1)  # it slides away, and MLflow lays out anew
        _wait(driver, is_drawn)
    driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, "iframe.mlflow-html-iframe"))
    driver.execute_script("scrollTo(0, 0)")
    driver.switch_to.default_content()
    driver.save_screenshot(str(path))


def _wait(driver: webdriver.Chrome, holds: Callable[[], bool]) -> None:
    """Wait until `holds()`. MLflow builds its page more than once: elements may vanish again."""
    ignored = (WebDriverException,)
    WebDriverWait(driver, SECONDS, ignored_exceptions=ignored).until(lambda _: holds())


if __name__ == "__main__":
    main()
