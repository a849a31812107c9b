"""Headless Chromium for tests and screenshots: its window, its colours, what it photographs."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.e2e.conftest import APART

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_THERE = CHROMIUM is not None and DRIVER is not None
WHY_NOT = "needs a browser: the packages chromium and chromium-driver"
SWITCHES = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
    *("disable-background-networking", "disable-component-update", "hide-scrollbars"),
)


@contextlib.contextmanager
def browser(*more: str) -> Iterator[webdriver.Chrome]:
    """Chromium that looks nothing up on its own, and logs what it is asked to fetch.

    `more` are switches for one test: `ignore-certificate-errors`.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for switch in (*SWITCHES, *more):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show(
    driver: webdriver.Chrome,
    url: str,
    *,
    width: int,
    height: int = 800,
    scheme: Literal["light", "dark"] = "light",
    scale: int = 1,
) -> None:
    """Open a page in a window of this size, in this colour scheme, `scale` points a pixel."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    colours(driver, scheme)
    driver.get(url)


def colours(driver: webdriver.Chrome, scheme: Literal["light", "dark"]) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@contextlib.contextmanager
def printed(home: Path) -> Iterator[list[str]]:
    """The lines that `carft-sweep ui` prints, while it serves a home."""
    command = [sys.executable, "-m", "carft_sweep", "--home", str(home), "ui", "--port", "0"]
    environ = {name: value for name, value in os.environ.items() if name not in APART}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as server:
        try:
            assert server.stdout is not None
            lines = iter(server.stdout.readline, "")
            yield [*itertools.takewhile(lambda line: "Ctrl-C" not in line, lines)]
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=30)


@contextlib.contextmanager
def served(home: Path) -> Iterator[str]:
    """The address of MLflow's server, as `carft-sweep ui` serves a home."""
    with printed(home) as lines:
        match = re.search(r"http://[^/\s]+", "".join(lines))
        assert match is not None, lines
        yield match[0]


def photograph(driver: webdriver.Chrome, path: Path, *, top: int = 0, height: int) -> None:
    """A part of the page, over its whole width, as PNG."""
    width = driver.execute_script("return document.documentElement.clientWidth")
    clip: dict[str, Any] = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    wanted = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    screenshot = driver.execute_cdp_cmd("Page.captureScreenshot", wanted)
    path.write_bytes(base64.b64decode(screenshot["data"]))
