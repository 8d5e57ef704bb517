"""The page of suspects, opened in a real browser from a file, and what is done with it there."""

import json
import shutil
from pathlib import Path

import page_data
import pytest
from page_data import FINGERPRINT

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("Playwright is not installed: `make test-browser` brings it and a browser")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, (*NAMES, playwright.chromium.executable_path))), None)
        if found is None:
            pytest.skip("no Chromium or Chrome on the PATH: `make test-browser` brings one")
        with playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as it:
            yield it


@pytest.fixture
def open_page(chromium, tmp_path):
    """Opens a page, or one of suspects; at the end nothing may have been fetched, been complained of or asked."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(120_000)  # ms: beside other work a browser can be slow
    troubles = []

    def open_page(suspects, **changes):
        path = suspects if isinstance(suspects, Path) else page_data.write(tmp_path, suspects, **changes)
        page = context.new_page()
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or troubles.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert troubles == []


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def text(page, id):
    return page.text_content(f"#{id}")


def export(page, act=lambda page: press(page, "e")):
    with page.expect_download() as download:
        act(page)
    assert download.value.suggested_filename == "decisions.jsonl"
    return download.value.path().read_text(encoding="utf-8")


def line(pair, decision, **more):
    return json.dumps({"pair": pair, "fingerprint": FINGERPRINT, "decision": decision} | more, separators=(",", ":"))


def lines(**decisions):
    return "".join(line(int(pair[1:]), decision) + "\n" for pair, decision in decisions.items())
