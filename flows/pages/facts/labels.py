"""The queues of tasks for people, and how far each is."""

from typing import Any

from flows.labels import WAYS, find_queue, quality_of, queues, summary_of
from flows.pages.site import Asked, Site


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """All queues of the first home, and the runs that one can be made of."""
    del asked
    home = site.homes[0]
    return {
        "queues": [summary_of(queue) for queue in queues(home)],
        "runs": [called for called, run in site.runs() if run.home == home],
        "ways": list(WAYS),
        "is_read_only": site.is_read_only,
    }


def facts_of_queue(site: Site, asked: Asked) -> dict[str, Any]:
    """One queue: who is asked, how far they agree, what they left out, and where they differ most."""
    queue = find_queue(site.homes[0], asked.path["queue"])
    return {**quality_of(queue), "is_read_only": site.is_read_only}
