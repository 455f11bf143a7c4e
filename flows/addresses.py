"""Addresses of the pages, so that whatever tells of a run can lead to its pages, whether they are served now or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

from tasks import environment

# The store is imported where it is used: the command line asks for the port before it knows what is wanted.
DEFAULT_PORT = 7400
SERVED, LOCK = "ui/served.json", "ui/lock"


def page_path(*path: object, **query: object) -> str:
    """The path of a page and what it asks for: what is None or empty is left out."""
    parts = "/".join(quote(str(part), safe="@:") for part in path)
    asked = {name.rstrip("_"): value for name, value in query.items() if value not in (None, "")}
    return f"/{parts}" + (f"?{urlencode(asked)}" if asked else "")


def base_address(home: Path) -> str:
    """Where the pages of a home are served now, else where ``rounds ui`` would serve them."""
    return served_at(home) or f"http://127.0.0.1:{DEFAULT_PORT}"


def pages_of_run(home: Path, name: str) -> str:
    """The address of a run's page while it is served, else the command that serves it."""
    if (address := served_at(home)) is not None:
        return address + page_path("runs", name)
    return f"rounds {environment.home_option(home)}ui {name}"


def served_at(home: Path) -> str | None:
    """Where the pages of a home are served now."""
    from tasks.store import is_locked, read_json

    if not is_locked(home / LOCK):
        return None
    found = read_json(home / SERVED, default={})
    return str(found["address"]) if isinstance(found, dict) and "address" in found else None


@contextmanager
def served(home: Path, address: str) -> Iterator[None]:
    """Let others know where the pages of a home are served, while they are; of several servers the first."""
    from tasks.store import exclusive, write_json

    (home / LOCK).parent.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a+") as stream:
        if exclusive(stream, patience_s=0.0):
            write_json(home / SERVED, {"address": address})
        yield
