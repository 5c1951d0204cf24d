"""What the tests of the page share: Chromium, a page in it, and a question."""

import os
import shutil
from urllib.parse import urlsplit

import pytest

WAIT = 120  # seconds until something that should happen at once counts as missing, however busy the machine

# as root in a container; without the others the browser asks for hosts of its maker at every start
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]
WIDTHS = {1280: 860, 390: 844}


@pytest.fixture(scope="module")
def browser():
    """Chromium, if there is one."""
    path = os.environ.get("ECGBYTE_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        message = "there is no browser: `make test-web` installs playwright and chromium"
        # CI sets this where it has installed them
        if os.environ.get("ECGBYTE_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=1000 * WAIT)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open an address in a context of its own; no request may go to another host, and no script may fail."""
    asked, failed, contexts = [], [], []

    def open_page(address, width=1280, scheme="light", expected=()):
        context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(1000 * WAIT)
        page = context.new_page()
        page.on("request", lambda request: asked.append((request.url, address)))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda m: failed.append(m.text) if m.type == "error" else None)
        page.expected = expected
        page.goto(address)
        return page

    yield open_page
    expected = [words for context in contexts for page in context.pages for words in page.expected]
    for context in contexts:
        context.close()
    assert asked
    others = [url for url, address in asked if urlsplit(url).netloc != urlsplit(address).netloc]
    assert [url for url in others if not url.startswith(("data:", "blob:"))] == []
    assert [text for text in failed if not any(words in text for words in expected)] == []


def ready(page):
    page.locator("#question:enabled").wait_for()
    return page


def ask(page, question):
    page.fill("#question", question)
    page.keyboard.press("Enter")
