from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import driver

expect.set_options(timeout=driver.PATIENCE)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser/" in item.nodeid:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if driver.chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium on this machine, and CI must not pass without it")
        pytest.skip("there is no Chromium on this machine")
    with driver.running_browser() as running:
        yield running


@pytest.fixture(scope="session")
def app(tmp_path_factory) -> Iterator[driver.App]:
    """One app for all tests: starting it costs more than most of them."""
    with driver.running_app(tmp_path_factory.mktemp("app")) as running:
        yield running
        log = running.log.read_text()
        closed = log.count("starlette.requests.ClientDisconnect")  # a page that closes while its sketch is uploaded
        assert log.count("Traceback") == closed, log


@pytest.fixture
def new_page(browser, app) -> Iterator[Callable[[], Page]]:
    """Opens pages, each a browser of its own; at the end none of them has asked anything of another machine."""
    foreign: list[str] = []
    errors: list[str] = []
    contexts = []

    def note(url: str) -> None:
        if not url.startswith((app.address, "data:", "blob:")):
            foreign.append(url)

    def make() -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: note(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        return driver.open_page(page, app)

    yield make
    for context in contexts:
        context.close()
    assert not foreign, "the page must work offline"
    assert not errors


@pytest.fixture
def page(new_page) -> Page:
    return new_page()
