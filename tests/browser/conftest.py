"""The system's Chromium, and pages in it."""

from __future__ import annotations

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
def browser():
    """One Chromium for all tests of a file, with a profile that is thrown away."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    executable = next(filter(None, found), None)
    if executable is None:
        missing = "no Chromium here: install Debian's package `chromium`"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS, timeout=DEADLINE_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page without cookies, cache or history; `page.complaints` is all that its console held against it."""
    context = browser.new_context(viewport={"width": 900, "height": 700}, reduced_motion="reduce")
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: message.type in ("error", "warning") and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    yield page
    context.close()
