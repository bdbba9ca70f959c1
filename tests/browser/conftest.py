"""The system's Chromium, and pages in it."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

DEADLINE_MS = 30_000.0
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",  # tests may run as root, which Chromium's sandbox refuses
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as playwright:
        yield playwright


@contextlib.contextmanager
def chromium(playwright, *flags):
    """A Chromium with a profile that is thrown away, until the end of the block."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    executable = next(filter(None, found), None)
    if executable is None:
        missing = "no Chromium here: install Debian's package `chromium`"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    argv = [*CHROMIUM_FLAGS, *flags]
    browser = playwright.chromium.launch(executable_path=executable, args=argv, timeout=DEADLINE_MS)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def browser(playwright):
    """One Chromium for all tests of a file."""
    with chromium(playwright) as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A page without cookies, cache or history; `page.complaints` is all that its console held against it."""
    with new_page(browser) as page:
        yield page


@contextlib.contextmanager
def new_page(browser):
    """As `page`, until the end of the block."""
    context = browser.new_context(
        viewport={"width": 900, "height": 700},
        reduced_motion="reduce",
        ignore_https_errors=True,  # certificates are made for one test, and no authority of this machine signs them
    )
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: message.type in ("error", "warning") and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    yield page
    context.close()
