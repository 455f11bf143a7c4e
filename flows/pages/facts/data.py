"""The data of a run: its sources, what was left out, and the first rows as the model sees them."""

from dataclasses import asdict
from typing import Any

from flows.analysis.data import prepared_data
from flows.pages.site import Asked, Site
from tasks.charts import histogram


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """The data of a round, by default of the last one that prepared any."""
    run = site.run(asked.path["run"])
    number = asked.number("round", 0, low=0, high=10**6) or None
    found = prepared_data(run, number)
    limit = run.config.rollouts.sampling.max_new_tokens
    shown = {name: own for name, own in asdict(found).items() if name != "lengths"}
    longest = {name: max(own, default=0) for name, own in found.lengths.items()}
    context = found.findings.get("context_length")
    charts = {
        name: histogram(
            f"Length of {name.replace('_', ' ')}",
            "tokens",
            {name: [float(n) for n in own]},
            counted="rows",
            mark=("context", float(context)) if context else None,
        )
        for name, own in found.lengths.items()
    }
    return {
        "called": asked.path["run"],
        **shown,
        "longest": longest,
        "max_new_tokens": limit,
        "charts": {name: chart for name, chart in charts.items() if chart is not None},
    }
