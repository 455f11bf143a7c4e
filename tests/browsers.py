"""A real browser for tests of pages: Playwright in a thread of its own, and a server for a home."""

import functools
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import uvicorn

from flows.pages.application import application
from flows.pages.site import Site
from flows.server import listening

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "token-of-the-test"


@contextmanager
def served_home(home):
    """The address of the pages of a home, while they are served in a thread."""
    listener = listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    pages = application(Site(homes=(home,)), token=TOKEN, hosts=("127.0.0.1",), port=port)
    server = uvicorn.Server(uvicorn.Config(pages, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    listener.close()


# Playwright keeps an event loop running in its thread, in which no other test of this process could start one.
THREAD = ThreadPoolExecutor(1)


def there(function, *args, **kwargs):
    """Call a function in the thread of the browser."""
    return THREAD.submit(function, *args, **kwargs).result()


def until(page, expression, argument=None):
    """Wait for a condition. Playwright's own way asks the page to run text as code, which our pages forbid."""
    deadline = time.monotonic() + 15
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def in_browser(test):
    """A test whose body runs in the thread of the browser."""

    @functools.wraps(test)
    def run(**fixtures):
        there(test, **fixtures)

    return run
