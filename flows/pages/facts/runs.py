"""The list of runs, and the rail that is beside every page."""

from dataclasses import asdict
from typing import Any

from flows.outcomes import overview, summary_of
from flows.outcomes.outputs import latest_variants
from flows.pages.site import Asked, Site
from flows.runs import Run
from tasks.errors import DamagedError, UserError
from tasks.store import Manifest, Ref, read_json, require_undamaged

COLUMNS = (
    ("evaluation/score", "score"),
    ("evaluation/score_gain", "gain (sd)"),
    ("evaluation/kl", "KL"),
    ("evaluation/response_length", "length"),
    ("reward_model/accuracy", "RM accuracy"),
)
"""What the list shows of each run's last round, beside the gains of its held-out rewards."""


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """All runs with the results of their last rounds."""
    del asked
    rows = [{"called": called, **asdict(overview(run)), **results_of(run)} for called, run in site.runs()]
    return {"homes": [str(home) for home in site.homes], "columns": COLUMNS, "runs": rows}


def rail(site: Site) -> list[dict[str, Any]]:
    """Each run with its state and a line of its scores."""
    return [{"called": called, **asdict(overview(run)), "scores": scores_of(run)} for called, run in site.runs()]


def results_of(run: Run) -> dict[str, Any]:
    """The numbers of the last round that has a report, and the scores that led to them."""
    try:
        report = last_report(run)
        results = {} if report is None else summary_of(report)
        held_out = list(run.config.evaluation.held_out_rewards)
    except (UserError, DamagedError):
        results, held_out = {}, []
    gains = {name: results.get(f"evaluation/{name}_gain") for name in held_out}
    return {"results": results, "held_out_gains": gains, "scores": scores_of(run)}


def scores_of(run: Run) -> list[float | None]:
    """The mean score of each iteration: from the last report, and from the stages themselves while the run goes on."""
    try:
        if run.is_in_progress() or (report := last_report(run)) is None:
            found = latest_variants(run, "score_rollouts")
            return [
                Manifest.read(f.ref.directory).metrics.get("score/mean") for f in sorted(found, key=lambda f: f.place)
            ]
        require_undamaged(report, "metrics.json")
        return [row.get("score/mean") for row in read_json(report.directory / "metrics.json", default=[])]
    except (UserError, DamagedError, OSError):
        return []


def last_report(run: Run) -> Ref | None:
    """The report of the last round that has one."""
    reports = latest_variants(run, "report_round")
    return max(reports, key=lambda found: found.place).ref if reports else None
