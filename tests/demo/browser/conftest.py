"""A real browser in front of the page: Debian's Chromium, driven by Playwright.

Where there is no Chromium these tests are skipped; `.ci/run` installs it. Screenshots go to the folder that
VTPRUNE_SCREENSHOTS names, else to a temporary one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

# A camera that shows a moving pattern, and needs no permission.
_ARGUMENTS = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
_PATIENCE = 60_000  # milliseconds; the machines that run tests may be busy


def chromium():
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = chromium()
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield launched
        launched.close()


@dataclasses.dataclass(frozen=True)
class Visitor:
    """A visitor with a window of his own."""

    window: object
    shots: Path

    def __getattr__(self, name):
        return getattr(self.window, name)

    def tab(self, name):
        self.window.get_by_role("tab", name=name, exact=True).click()

    def press(self, name):
        self.window.get_by_role("button", name=name, exact=True).click()

    def shoot(self, name):
        """Keep a picture of the whole page, once letters and pictures are there."""
        self.window.evaluate("document.fonts.ready")
        self.window.wait_for_timeout(300)
        self.window.screenshot(path=self.shots / f"{name}.png", full_page=True)


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    folder = os.environ.get("VTPRUNE_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def visit(browser, served, shots):
    """Open the page in a new window; in the end nothing may have been fetched from elsewhere, nor have failed."""
    contexts, strange, wrong = [], [], []

    def seen(request):
        place = urlsplit(request.url)
        if place.scheme in ("http", "https", "ws", "wss") and place.hostname != "127.0.0.1":
            strange.append(request.url)

    def call(width=1280, theme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, accept_downloads=True, permissions=["camera"]
        )
        contexts.append(context)
        window = context.new_page()
        window.set_default_timeout(_PATIENCE)
        window.on("request", seen)
        window.on("pageerror", lambda error: wrong.append(str(error)))
        window.goto(f"{served.url}?__theme={theme}")
        window.get_by_role("button", name="Ask", exact=True).wait_for()
        return Visitor(window, shots)

    yield call
    for context in contexts:
        context.close()
    assert not strange, "fetched from elsewhere"
    assert not wrong, "scripts of the page failed"
