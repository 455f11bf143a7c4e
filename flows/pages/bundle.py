"""The pages of one run as files, which need no server: to keep beside a paper, or to send to somebody.

A bundle is what a reader would find who follows the links of the run's page: every page that is linked is written, and a
link to what is left out (searches, the pages of other runs) is taken away, so that none leads nowhere.
"""

import html
import re
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.routing import compile_path

from flows.pages.application import HERE, error_text, page_text
from flows.pages.pages import PAGES, Page
from flows.pages.site import Asked, Site
from tasks.charts import plotly_script
from tasks.errors import ConfigError, RunError

KEPT_QUERY = ("round", "iteration", "data")
"""What of an address leads to another page of a bundle; with anything else, such as a search, it is left out."""
OPENED_FROM = ("rounds", "iterations")
"""What a rollout's address says of where it was opened from, which makes no other page of it."""
# All attributes are ours: whatever a model wrote has its quotation marks escaped, and cannot look like one.
LINK = re.compile(r'(?P<name>\s(?:href|src|data-points))="(?P<address>/[^"]*)"')
Told = Callable[[str], None]


def write_bundle(site: Site, called: str, directory: Path, *, rollouts: int, told: Told = lambda _: None) -> int:
    """Write all pages of a run below ``directory``, of each iteration those of the first ``rollouts`` responses.

    Returns the number of pages.

    Raises:
        ConfigError: there is something at that place already.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"--bundle {directory}: is there already, and not empty; name another directory")
    # What is sent to somebody tells of this run alone.
    site = replace(site, only=called)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "static", directory / "static", dirs_exist_ok=True)
    shutil.copy(plotly_script(), directory / "static" / "plotly.js")
    first = f"/runs/{called}"
    names = {first: "index.html"}
    waiting = deque([first])
    of_place: dict[str, int] = {}

    def name_of(address: str, page: Page, asked: Asked) -> str | None:
        """The file of a linked page, which is asked for here if it was not before; None if it is left out."""
        if address not in names:
            if page.name == "rollout":
                place = ".".join(asked.path["rollout_id"].split(".")[:2])
                of_place[place] = of_place.get(place, 0) + 1
                if of_place[place] > rollouts:
                    return None
            names[address] = file_name(page, asked)
            waiting.append(address)
        return names[address]

    written = 0
    while waiting:
        address = waiting.popleft()
        found = found_page(address, called)
        assert found is not None
        page, asked, _ = found
        try:
            text = page_text(site, page, asked)
        except RunError as error:
            # The run has nothing of the kind, or not yet.
            text, _ = error_text(site, str(error), 404)
        (directory / names[address]).write_text(as_file(text, called, name_of))
        written += 1
        told(names[address])
    return written


def found_page(address: str, called: str) -> tuple[Page, Asked, str] | None:
    """The page of an address, what it asks, and its address in this one form; None where no bundle has it."""
    parts = urlsplit(address)
    query = {name: value for name, value in parse_qsl(parts.query) if value and name not in OPENED_FROM}
    if set(query) - set(KEPT_QUERY):
        return None
    for page in PAGES:
        match = compile_path(page.path)[0].match(parts.path)
        if match and match.groupdict().get("run") == called:
            kept = urlencode([(name, query[name]) for name in KEPT_QUERY if name in query])
            address = f"{parts.path}?{kept}" if kept else parts.path
            return page, Asked(path=match.groupdict(), query=query), address
    return None


def file_name(page: Page, asked: Asked) -> str:
    """Said by the page and what it shows, in characters that every file system takes."""
    own = [value for name, value in asked.path.items() if name != "run"]
    own += [f"{name}-{asked.query[name]}" for name in KEPT_QUERY if name in asked.query]
    return re.sub(r"[^\w.-]", "_", "-".join([page.name, *own]))[:150] + ".html"


def as_file(text: str, called: str, name_of: Callable[[str, Page, Asked], str | None]) -> str:
    """A page whose links lead to files beside it, or nowhere."""

    def relinked(match: re.Match[str]) -> str:
        address = html.unescape(match["address"])
        if address.startswith("/static/"):
            return f'{match["name"]}="{address[1:]}"'
        bare, _, fragment = address.partition("#")
        found = found_page(bare, called)
        name = None if found is None else name_of(found[2], found[0], found[1])
        if name is None:
            return ' data-left-out=""'
        return f'{match["name"]}="{name}{"#" + html.escape(fragment) if fragment else ""}"'

    return LINK.sub(relinked, text).replace("<html ", '<html class="bundle" ', 1)
