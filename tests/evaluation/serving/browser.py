"""A headless Chromium, as Debian's chromium-driver brings it, and what tests do in it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
         "--autoplay-policy=no-user-gesture-required", "--no-first-run", "--disable-background-networking")  # fmt: skip
PROGRAMS = ("chromium", "google-chrome", "chrome")
PATIENCE = 60.0


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = next(filter(None, map(shutil.which, PROGRAMS)), None), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    browser = webdriver.Chrome(options=options, service=Service(driver, env=environment))
    browser.set_script_timeout(PATIENCE)
    browser.set_page_load_timeout(PATIENCE)
    try:
        yield Page(browser)
    finally:
        browser.quit()


class Page:
    """The page in a browser."""

    def __init__(self, browser: WebDriver) -> None:
        self.browser = browser

    def open(self, address: str, width: int = 1280, height: int = 800, *, phone: bool = False) -> None:
        """Open the page anew, and wait for its first list."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone, "maxTouchPoints": 2})
        self.browser.get("about:blank")
        self.browser.get_log("browser")
        self.browser.get(address)
        self.until("document.getElementById('status').textContent !== ''")

    def run(self, script: str, *values: Any) -> Any:
        """The value of an expression in the page; ``arguments`` are the values."""
        return self.browser.execute_script(f"return {script}", *values)

    def until(self, condition: str, *values: Any) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition, *values):
            assert time.monotonic() < end, f"never: {condition} {values}; {self.browser.get_log('browser')}"
            time.sleep(0.03)

    def text(self, element: str) -> str:
        return str(self.run("document.getElementById(arguments[0]).textContent", element))

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.browser)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def files(self) -> list[str]:
        """The sounds that are listed."""
        return list(self.run("S.clips.map(clip => clip.file)"))

    def drag(self, path: list[tuple[float, float]]) -> None:
        """Press the mouse at the first place, move along the path, and let go."""
        for number, (x, y) in enumerate(path):
            kind = "mousePressed" if number == 0 else "mouseMoved"
            self._mouse(kind, x, y)
        self._mouse("mouseReleased", *path[-1])

    def _mouse(self, kind: str, x: float, y: float) -> None:
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1, "pointerType": "mouse"}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def hover(self, x: float, y: float) -> None:
        """Move the mouse to a place without pressing it."""
        event = {"type": "mouseMoved", "x": x, "y": y, "button": "none", "buttons": 0, "pointerType": "mouse"}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def stroke(self, path: list[tuple[float, float]]) -> None:
        """The same with a finger."""
        for number, (x, y) in enumerate(path):
            kind = "touchStart" if number == 0 else "touchMove"
            self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def place_of(self, row: int) -> tuple[float, float]:
        """Where the point of a row is in the window."""
        self.until("map.frame && map.frame.w > 0 && map.rows.length > 0")
        script = """((box, place) => [box.left + place[0], box.top + place[1]])(
            canvas.getBoundingClientRect(), map.place(map.index.get(arguments[0])))"""
        x, y = self.run(script, row)
        return float(x), float(y)

    def complaints(self, expected: str = "\0") -> list[str]:
        """What the console has said of errors, and of what the page's own policy has refused; without those that have
        the ``expected`` text."""
        said = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in said if expected not in message]
