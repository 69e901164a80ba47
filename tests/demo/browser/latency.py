"""How long Explore takes from a slider to the picture, in a real browser: `python -m tests.demo.browser.latency`.

Prints milliseconds as JSON: browser and server share the machine, the model is tiny-llava, the method fastv.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.demo.browser.conftest import chromium
from tests.demo.serving import serve
from vtprune.bench.machine import describe_machine
from vtprune.demo.work.models import Models
from vtprune.models import load_model

CHANGES = 25
_CHANGED = """before => {
    const image = document.querySelector('#explore-overlay img');
    return image && image.src != before && image.complete;
}"""


def measure(url: str) -> list[float]:
    """Milliseconds of each change, after three that do not count."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": 1280, "height": 900})
        window.goto(url)
        window.get_by_role("tab", name="Explore", exact=True).click()
        window.locator("#explore-overlay img").wait_for()
        slider, times = window.locator("#explore-keep input[type=range]"), []
        for _ in range(CHANGES + 3):
            before = window.locator("#explore-overlay img").get_attribute("src")
            address = window.evaluate("src => new URL(src, document.baseURI).href", before)
            start = time.perf_counter()
            slider.press("ArrowRight")
            window.wait_for_function(_CHANGED, arg=address, polling=5)
            times.append(1000 * (time.perf_counter() - start))
            window.wait_for_timeout(200)
        browser.close()
    return times[3:]


if __name__ == "__main__":
    loaded = load_model("tiny-llava")
    with tempfile.TemporaryDirectory() as scratch, serve(Models([loaded]), Path(scratch)) as served:
        found = measure(served.url)
    result = {
        "median_ms": round(statistics.median(found), 1),
        "least_ms": round(min(found), 1),
        "most_ms": round(max(found), 1),
        "changes": len(found),
        "machine": describe_machine(loaded.model.device),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
