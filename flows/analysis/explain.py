"""What a metric is, by its declaration, and what it was in a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from flows.outcomes import StageStatus
from tasks.errors import ConfigError
from tasks.metrics import rows_of
from tasks.metrics.declared import GLOSSARY, LOGGED_BY, STDERR, Metric, declared

SUGGESTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is declared of a metric."""

    name: str
    """``<reward>`` in it stands for any name of the user's."""
    unit: str
    meaning: str
    healthy: str
    warns: str
    advice: str
    """The likely cause and the next move where it is not healthy."""
    combines: str
    """How the numbers of several shards or iterations are one."""
    has_stderr: bool
    logged_by: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a metric was, place by place."""

    name: str
    values: list[tuple[int, int, float]]
    """Round, iteration (0 for what is measured once in a round) and value."""


def explanation_of(name: str) -> Explanation:
    """What a metric is, by the name that it is logged by, or declared by.

    Raises:
        ConfigError: there is none of that name; with those that look like it.
    """
    metric = GLOSSARY.get(name) or declared(name)
    if metric is None:
        likely = ", ".join(suggestions(name)) or "those in tasks/metrics/README.md"
        raise ConfigError(f"{name}: no such metric; did you mean {likely}?")
    return Explanation(
        name=metric.name,
        unit=metric.unit,
        meaning=metric.meaning,
        healthy=str(metric.healthy),
        warns=str(metric.warns) if metric.warns else "",
        advice=metric.advice,
        combines=metric.combines.way,
        has_stderr=metric.has_stderr,
        logged_by=[stage for stage, own in LOGGED_BY.items() if metric in own],
    )


def suggestions(name: str) -> list[str]:
    """Metrics whose names hold this one, or look like it."""
    wanted = name.lower().strip("/ ").replace(" ", "_")
    holding = [known for known in GLOSSARY if wanted and wanted in known.lower()]
    alike = get_close_matches(wanted, GLOSSARY, n=SUGGESTED, cutoff=0.6)
    return list(dict.fromkeys([*alike[:1], *holding, *alike]))[:SUGGESTED]


def figures_of(name: str, stages: Sequence[StageStatus]) -> list[Figures]:
    """The values of a metric in a run; of a name with ``<reward>`` in it those of each reward."""
    parts: dict[tuple[int, int], list[tuple[int, Mapping[str, float]]]] = {}
    for status in stages:
        parts.setdefault((status.round, status.iteration), []).extend(status.parts)
    rows, of_rounds = rows_of(parts)
    places = [(row["round"], row["iteration"], row) for row in rows]
    places += [(round, 0, own) for round, own in of_rounds.items()]
    metric = GLOSSARY.get(name)
    logged = dict.fromkeys(own for _, _, row in places for own in row)
    names = [name] if metric is None or not metric.is_pattern else [own for own in logged if is_of(own, metric)]
    found = [
        Figures(name=own, values=sorted((round, at, row[own]) for round, at, row in places if own in row))
        for own in names
    ]
    return [figures for figures in found if figures.values]


def is_of(name: str, metric: Metric) -> bool:
    return not name.endswith(STDERR) and name not in ("round", "iteration") and declared(name) is metric
