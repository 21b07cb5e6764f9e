"""Starts the real app and opens its page; used by the tests and by the screenshots."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from sar_gen.settings import ROOT

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 90_000  # milliseconds; generous, since CI machines are shared and a patch can take a minute there


@dataclass(frozen=True)
class App:
    """A running app.

    ``seconds`` is the time from its start to the first answer of the page; ``checkpoints`` is a folder that it looks
    into for further checkpoints.
    """

    address: str
    home: Path
    runs: Path
    seconds: float
    log: Path
    checkpoints: Path

    def run_folders(self) -> list[Path]:
        return sorted(path for path in self.runs.iterdir() if path.is_dir()) if self.runs.is_dir() else []


def chromium() -> str | None:
    """Return the path of the machine's Chromium, if it has one."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_app(folder: Path, *arguments: str) -> Iterator[App]:
    """Start ``app.py`` with its own home and runs folders below ``folder``; end it afterwards."""
    home, runs, log, further = folder / "home", folder / "runs", folder / "app.log", folder / "checkpoints"
    further.mkdir(exist_ok=True)
    port = free_port()
    environment = {
        **os.environ,
        "SAR_GEN_HOME": str(home),
        "SAR_GEN_RUNS": str(runs),
        "SAR_GEN_DEVICE": "cpu",
        "SAR_GEN_CHECKPOINT_FOLDERS": str(further),
    }
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--no-open", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    answer.read()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() - started > 90:
                    raise RuntimeError(f"the page does not answer:\n{log.read_text()}") from None
                time.sleep(0.05)
        yield App(address, home, runs, time.monotonic() - started, log, further)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


def open_page(page: Page, app: App) -> Page:
    """Open the page and wait until it is restored: the real patch is drawn last."""
    page.set_default_timeout(PATIENCE)
    page.goto(app.address)
    page.wait_for_selector("#generate")
    page.wait_for_selector("#real-tile img")
    return page


def set_number(page: Page, elem_id: str, value: int) -> None:
    """Type a number into the field of an id."""
    type_number(page, page.locator(f"#{elem_id} input[type=number]"), value)


def type_number(page: Page, field: Locator, value: int) -> None:
    """Type a number; again where the field was just being built (an accordion that opens) and took its own value."""
    for _ in range(3):
        field.fill(str(value))
        field.blur()
        page.wait_for_timeout(150)
        if field.input_value() == str(value):
            return


def choose(page: Page, elem_id: str, option: str, *, exact: bool = False) -> None:
    """Choose from the list of an id, and of no other: a list that was just left may still be fading out."""
    field = page.locator(f"#{elem_id}")
    field.locator("input").click()
    field.get_by_role("option", name=option, exact=exact).click()
    field.get_by_role("listbox").wait_for(state="hidden")


def look_at(page: Page, elem_id: str, elsewhere: str = "#prompt textarea") -> None:
    """Open a list and leave it without a choice; the server has had the time to answer."""
    page.locator(f"#{elem_id} input").click()
    page.locator(f"#{elem_id}").get_by_role("listbox").wait_for()
    page.locator(elsewhere).click()
    page.locator(f"#{elem_id}").get_by_role("listbox").wait_for(state="hidden")
    page.wait_for_timeout(1500)


def ask(page: Page, prompt: str, *, count: int = 1, steps: int = 2, seed: int | None = None) -> None:
    """Fill in the form."""
    page.fill("#prompt textarea", prompt)
    set_number(page, "count", count)
    if not page.locator("#steps input[type=number]").is_visible():
        page.locator("#advanced > button").click()
    set_number(page, "steps", steps)
    if seed is not None:
        page.locator("#random-seed input").uncheck()
        set_number(page, "seed", seed)


def status(page: Page, kind: str) -> Locator:
    """Return the status line once it is of a kind: busy, done, stopped or failed."""
    line = page.locator(f"#status .sg-status.{kind}")
    line.wait_for()
    return line


def thumbnails(page: Page) -> Locator:
    return page.locator("#gallery button.thumbnail-lg")
