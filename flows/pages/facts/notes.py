"""Notes: what people wrote beside pages, and a form for one more."""

from dataclasses import asdict
from typing import Any

from flows.pages.site import Asked, Site
from flows.runs import notes, require_own


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """All notes of the home, those about one page first where they are opened from it."""
    about = asked.text("about")
    if about:
        require_own(about)
    found = [{**asdict(note), "is_about_it": note.address == about} for note in notes(site.homes[0])]
    return {
        "about": about or None,
        "notes": sorted(found, key=lambda note: not note["is_about_it"]),
        "is_read_only": site.is_read_only,
    }


def number_about(site: Site, address: str) -> int:
    """How many notes a page has."""
    return sum(note.address == address for note in notes(site.homes[0]))
