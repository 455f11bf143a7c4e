"""Whether the score of a run is to be believed: the audit as a reading list."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.analysis.hacking import HELD_OUT, suspicion_of
from flows.analysis.phrases import search_of
from flows.outcomes import run_warnings, stage_statuses
from flows.outcomes.status import metrics_history
from flows.pages.site import Asked, Site
from flows.plan import glance_at
from flows.query import Part, Span, select, span
from flows.text import printable
from tasks.charts import scatter
from tasks.charts.of_run import hacking_chart
from tasks.metrics.declared import STDERR, named
from tasks.store import Manifest

GAP, CORRELATION, OF_LENGTH = "audit/<reward>_gap", "audit/<reward>_correlation", "audit/length_correlation"
LONGEST_HINT = 120
"""Characters of a response that a point shows on hover."""


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """What speaks against the score, in one iteration or in many, against the run's first."""
    run = site.run(asked.path["run"])
    plan = glance_at(run)
    now = select(
        run,
        plan=plan,
        rounds=span(asked.text("round") or None, option="round"),
        iterations=span(asked.text("iteration") or None, option="iteration"),
    )
    first = select(run, plan=plan, rounds=Span(1, 1), iterations=Span(1, 1))
    found = suspicion_of(now.data_set, first.data_set)
    statuses = stage_statuses(plan)
    history = metrics_history(statuses)
    places = sorted({(part.place.round, part.place.iteration) for part in now.parts})
    latest = audited(now.parts)
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
        "round": asked.text("round"),
        "iteration": asked.text("iteration"),
        "gaps": with_errors(GAP, latest),
        "correlations": [own for own in with_errors(CORRELATION, latest) if own["metric"] != OF_LENGTH],
        "length_correlation": latest.get(OF_LENGTH),
        "warnings": [warning.as_dict() for warning in run_warnings(statuses) if warning.metric.startswith("audit/")],
        "chart": hacking_chart(history),
        "points": {name: chart for name, chart in points.items() if chart is not None},
        "suspicious": found.suspicious,
        "phrases": [{**phrase.as_dict(), "q": search_of(phrase.text)} for phrase in found.phrases],
        "openings": [{**phrase.as_dict(), "q": search_of(phrase.text, is_opening=True)} for phrase in found.openings],
        "duplicates": found.duplicates,
        "duplicate_share": found.duplicate_share,
    }


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def with_errors(metric: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics of that name, with the standard error of each where that is known."""
    return [{"metric": name, "value": row[name], "stderr": row.get(f"{name}{STDERR}")} for name in named(metric, row)]


def audited(parts: Sequence[Part]) -> Mapping[str, float]:
    """What the last audit of these places measured; nothing where none is audited yet."""
    audits = [audit for part in parts for audit in part.audits]
    return Manifest.read(audits[-1].directory).metrics if audits else {}
