"""Whether the score of a run is to be believed: the audit as a reading list."""

from typing import Any

from flows.analysis.hacking import HELD_OUT, suspicion_of
from flows.outcomes import run_warnings, stage_statuses
from flows.outcomes.status import metrics_history
from flows.pages.site import Asked, Site
from flows.plan import plan_of
from flows.query import Span, quoted, select, span
from flows.text import printable
from tasks.charts import scatter
from tasks.charts.of_run import hacking_chart
from tasks.metrics.declared import STDERR, named

GAP = "audit/<reward>_gap"
LONGEST_HINT = 120
"""Characters of a response that a point shows on hover."""


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """What speaks against the score, in one iteration or in many, against the run's first."""
    run = site.run(asked.path["run"])
    now = select(
        run,
        rounds=span(asked.text("round") or None, option="round"),
        iterations=span(asked.text("iteration") or None, option="iteration"),
    )
    first = select(run, rounds=Span(1, 1), iterations=Span(1, 1))
    found = suspicion_of(now.data_set, first.data_set)
    statuses = stage_statuses(plan_of(run))
    history = metrics_history(statuses)
    places = sorted({(part.place.round, part.place.iteration) for part in now.parts})
    latest: dict[str, Any] = next((row for row in reversed(history) if (row["round"], row["iteration"]) in places), {})
    ids = [row["rollout_id"] for row in found.rows]
    texts = [printable(row["response"], LONGEST_HINT) for row in found.rows]
    scores = [row["score"] for row in found.rows]
    lengths = column(found.rows, "length")
    points = {"length": scatter("Score against length", ("tokens", lengths), ("score", scores), ids, texts)}
    for name in found.held_out:
        label = name.removeprefix(HELD_OUT).replace("_", " ")
        points[name] = scatter(
            f"Score against {label}", (label, column(found.rows, name)), ("score", scores), ids, texts
        )
    return {
        "called": asked.path["run"],
        "places": places,
        "read": len(found.rows),
        "total": now.data_set.num_rows,
        "held_out": [name.removeprefix(HELD_OUT) for name in found.held_out],
        "gaps": [
            {"metric": name, "value": latest[name], "stderr": latest.get(f"{name}{STDERR}")}
            for name in named(GAP, latest)
        ],
        "length_correlation": latest.get("audit/length_correlation"),
        "warnings": [warning.as_dict() for warning in run_warnings(statuses) if warning.metric.startswith("audit/")],
        "chart": hacking_chart(history),
        "points": {name: chart for name, chart in points.items() if chart is not None},
        "suspicious": found.suspicious,
        "phrases": [{**phrase.as_dict(), "q": search_of(phrase.text)} for phrase in found.phrases],
        "openings": [{**phrase.as_dict(), "q": search_of(phrase.text)} for phrase in found.openings],
        "duplicates": found.duplicates,
        "duplicate_share": found.duplicate_share,
    }


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def search_of(phrase: str) -> str:
    """A search that finds a phrase: whatever stands between its words in the text."""
    words = r"\s*".join(escaped(word) for word in phrase.split(" "))
    return f"response:/{words}/" if " " in phrase else f"response:{quoted(phrase)}"


def escaped(word: str) -> str:
    """A word so that a pattern takes it as it is."""
    return "".join(c if c.isalnum() or c == "_" else "\\" + c for c in word)
