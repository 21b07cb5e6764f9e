"""A page whose pictures are made by another process: progress, Stop, same pictures, and the page without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from sar_gen.settings import ROOT
from tests.browser import driver
from tests.browser.driver import ask, choose, status, thumbnails
from tests.browser.test_compare import compare, drop, speckle

PROMPT = "a SAR image of a mountain gorge"


@dataclass
class Backend:
    address: str
    process: subprocess.Popen[str]

    def jobs(self) -> int:
        with urllib.request.urlopen(f"{self.address}/state", timeout=30) as answer:
            return int(json.load(answer)["jobs"])


def start(port: int, home: Path) -> Backend:
    process = subprocess.Popen(
        [sys.executable, "-m", "sar_gen", "serve", "--port", str(port), "--device", "cpu"],
        cwd=ROOT, env={**os.environ, "SAR_GEN_HOME": str(home)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("The engine is at")
    return Backend(f"http://127.0.0.1:{port}", process)


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> Iterator[Backend]:
    running = start(driver.free_port(), tmp_path_factory.mktemp("backend"))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def remote(backend, tmp_path_factory) -> Iterator[driver.App]:
    with driver.running_app(tmp_path_factory.mktemp("page"), "--backend", backend.address) as app:
        yield app
        assert "Traceback" not in app.log.read_text(), app.log.read_text()


@pytest.fixture
def page(browser, remote) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield driver.open_page(context.new_page(), remote)
    context.close()


def turbo(page: Page) -> None:
    choose(page, "strategy", "Turbo")


def local_hashes(folder: Path, seed: int, count: int) -> list[str]:
    """What this machine makes without a backend."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sar_gen", "generate", PROMPT, "--strategy", "turbo", "--steps", "4"),
            *("--guidance", "1", "--seed", str(seed), "--count", str(count), "--device", "cpu", "--json"),
        ],
        cwd=ROOT, env={**os.environ, "SAR_GEN_HOME": str(folder), "SAR_GEN_RUNS": str(folder / "runs")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [image["sha256"] for image in json.loads(done.stdout)["images"]]


def test_the_pictures_are_those_made_here(backend, remote, page, tmp_path):
    where = backend.address.removeprefix("http://")
    expect(page.locator("#engine .sg-engine.ready")).to_have_text(f"Ready · cpu at {where} · float32 · sar-mini")
    turbo(page)
    ask(page, PROMPT, count=2, steps=4, seed=7)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("Step ")
    expect(page.locator("#status [role=progressbar]")).to_be_visible()
    expect(status(page, "done")).to_contain_text("2 patches saved")
    expect(thumbnails(page)).to_have_count(2)
    expect(page.locator("#verdict p").first).to_contain_text("s1-gorge")  # judged on this machine
    record = json.loads((remote.run_folders()[-1] / "run.json").read_text())
    assert record["device"]["backend"] == backend.address
    assert record["checkpoint"]["strategy"] == "turbo"
    assert record["checkpoint"]["parts"]
    made = [image["sha256"] for image in record["images"]]
    assert made == local_hashes(tmp_path, seed=7, count=2)


def test_stop_reaches_the_backend(backend, remote, page):
    ask(page, PROMPT, count=8, steps=20, seed=20)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("Step ")
    assert backend.jobs() == 1
    pressed = time.monotonic()
    page.keyboard.press("Escape")
    status(page, "stopped")
    while backend.jobs():
        assert time.monotonic() - pressed < 10
    print("Stop to idle backend", round(time.monotonic() - pressed, 2), "s")
    assert json.loads((remote.run_folders()[-1] / "run.json").read_text())["status"] == "stopped"


def test_bad_input_is_the_same_sentence(remote, page):
    runs = len(remote.run_folders())
    ask(page, PROMPT, steps=4)
    page.fill("#prompt textarea", "")
    page.locator("#generate").click()
    expect(status(page, "failed")).to_contain_text("The prompt is empty")
    assert len(remote.run_folders()) == runs


def test_a_backend_that_dies_and_comes_back(backend, remote, page, tmp_path):
    turbo(page)
    ask(page, PROMPT, count=40, steps=4, seed=30)
    page.locator("#generate").click()
    expect(thumbnails(page)).not_to_have_count(0)
    backend.process.kill()
    backend.process.wait()
    expect(status(page, "failed")).to_contain_text("was lost; the")
    record = json.loads((remote.run_folders()[-1] / "run.json").read_text())
    assert record["status"] == "failed"
    assert 1 <= len(record["images"]) < 40
    expect(thumbnails(page)).to_have_count(len(record["images"]))
    expect(page.locator("#engine .sg-engine.failed")).to_contain_text("cannot be reached")

    # The page goes on without it.
    page.locator("#generate").click()
    expect(status(page, "failed")).to_contain_text(re.compile("The backend http.* cannot be reached"))
    page.get_by_role("tab", name="Compare").click()
    patch = tmp_path / "mine.npy"
    np.save(patch, speckle(1))
    drop(page, "judged", [patch])
    choose(page, "judged-meaning", "Studio amplitude")
    compare(page)
    expect(page.locator("#compare-verdict small")).to_contain_text("1 judged")
    page.get_by_role("tab", name="Generate").click()
    choose(page, "reference", "Forest")
    expect(page.locator("#verdict p").first).to_contain_text("s1-forest")

    # It comes back at the same address, and serves the next request.
    again = start(int(backend.address.rpartition(":")[2]), tmp_path)
    backend.process = again.process
    expect(page.locator("#engine .sg-engine.ready")).to_contain_text("cpu at")
    ask(page, PROMPT, count=1, steps=4, seed=7)
    page.locator("#generate").click()
    expect(status(page, "done")).to_contain_text("1 patch saved")
