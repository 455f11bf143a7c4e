"""The pages over a real run, in a real browser, as people use them: by keyboard, in light and dark, on a small screen."""

import shutil
import threading
import time

import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from flows.pages.application import application
from flows.pages.serve import listening
from flows.pages.site import Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "token-of-the-test"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")


@pytest.fixture(scope="session")
def address(looked_at):
    """Where the pages of a home with one real run are served."""
    listener = listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    pages = application(Site(homes=(looked_at,)), token=TOKEN, hosts=("127.0.0.1",), port=port)
    server = uvicorn.Server(uvicorn.Config(pages, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        # The sandbox of Chromium refuses root, as whom containers run.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=["light", "dark"])
def page(request, address, browser):
    """A window of 1280 × 720 at the list of runs, which must come without an error of any script."""
    window = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme=request.param)
    page = window.new_page()
    mistakes = []
    page.on("console", lambda message: mistakes.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.goto(f"{address}/?token={TOKEN}")
    yield page
    window.close()
    assert mistakes == []


def test_from_the_list_to_a_stage_by_keyboard_alone(page):
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/tiny")
    assert page.locator("h1").inner_text().startswith("tiny")
    page.locator("#stages .cell").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/stages/*")
    assert page.locator("h1").inner_text() == "prepare data"


def test_keys_are_told_by_a_key(page):
    page.keyboard.press("?")
    told = page.locator("dialog[open]").inner_text()
    assert "next row" in told
    assert "all runs" in told
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_nothing_is_wider_than_the_window(page):
    for path in ("/", "/runs/tiny"):
        page.goto(page.url.split("/runs")[0].rstrip("/") + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_the_page_of_another_origin_reads_nothing(page, address):
    """A page of another origin asks for a run's facts, with the browser's cookie as that would send it."""
    other = page.context.new_page()
    other.goto("data:text/html,<title>elsewhere</title>")
    read = """async (address) => {
        try { return (await fetch(address + '/json', {credentials: 'include', mode: 'no-cors'})).type }
        catch (error) { return 'refused' }
    }"""
    assert other.evaluate(read, address) in ("refused", "opaque")
    framed = other.evaluate(
        """(address) => new Promise((done) => {
            const frame = document.createElement('iframe');
            const text = () => frame.contentDocument?.body.innerText ?? 'unreadable';
            frame.onload = () => { try { done(text()) } catch { done('unreadable') } };
            frame.src = address;
            document.body.append(frame);
        })""",
        address,
    )
    assert "tiny" not in framed
    other.close()
