"""The table of pages: where each lies, what it shows, and by which template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.pages.facts import (
    compare,
    data,
    hacking,
    labels,
    notes,
    reward_model,
    rollout,
    rollouts,
    run,
    runs,
    schedules,
    stage,
)
from flows.pages.site import Asked, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One kind of page."""

    name: str
    path: str
    facts: Callable[[Site, Asked], dict[str, Any]]
    """What it shows, as plain values: the same for HTML and JSON."""
    form: Callable[[Site, Asked], dict[str, Any]] | None = None
    """What of that there is where the rest cannot be shown: what was typed, to be corrected."""

    @property
    def template(self) -> str:
        return f"{self.name}.html"


PAGES = (
    Page(name="runs", path="/", facts=runs.facts),
    Page(name="run", path="/runs/{run}", facts=run.facts),
    Page(name="rollouts", path="/runs/{run}/rollouts", facts=rollouts.facts),
    Page(name="rollout", path="/runs/{run}/rollouts/{rollout_id}", facts=rollout.facts),
    Page(name="hacking", path="/runs/{run}/hacking", facts=hacking.facts),
    Page(name="compare", path="/compare", facts=compare.facts, form=compare.form),
    Page(name="reward_model", path="/runs/{run}/reward-model", facts=reward_model.facts),
    Page(name="data", path="/runs/{run}/data", facts=data.facts),
    Page(name="stage", path="/runs/{run}/stages/{fingerprint}", facts=stage.facts),
    Page(name="labels", path="/labels", facts=labels.facts),
    Page(name="queue", path="/labels/{queue}", facts=labels.facts_of_queue),
    Page(name="schedules", path="/schedules", facts=schedules.facts),
    Page(name="notes", path="/notes", facts=notes.facts),
)
