"""A run: its results, its curves through all rounds, and the grid of its stages."""

from typing import Any

from flows.outcomes import reports_of, result_columns, result_rows, run_state, run_warnings, stage_statuses, summary_of
from flows.outcomes.results import sentence_of
from flows.outcomes.status import StageStatus, metrics_history
from flows.pages.site import Asked, Site
from flows.plan import Plan, glance_at
from tasks.charts import charts_of
from tasks.store import read_json, require_undamaged

MOST_SHOWN, FIRST_SHOWN, LAST_SHOWN = 50, 3, 20
"""Iterations of a round in the grid of stages: of more than so many only the first and the last ones."""


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """All that a run has come to."""
    run = site.run(asked.path["run"])
    plan = glance_at(run)
    statuses = stage_statuses(plan)
    summaries = [summary_of(report) for report in reports_of(plan)]
    history = metrics_history(statuses)
    columns = result_columns(run.config)
    state, warnings = run_state(run, plan), run_warnings(statuses)
    return {
        "called": asked.path["run"],
        "directory": str(run.root),
        "state": state,
        "sentence": sentence_of(run.config, state, summaries, len(warnings)),
        "is_live": run.is_in_progress(),
        "created_at": run.created_at,
        "algorithm": run.config.algorithm,
        "results": {"titles": [column.title for column in columns], "rows": result_rows(columns, summaries)},
        "warnings": [warning.as_dict() for warning in warnings],
        "history": history,
        "figures": charts_of(history, calibration_of(plan)),
        "grid": grid_of(plan, statuses, whole=asked.one_of("stages", ("all", "some"), "some") == "all"),
    }


def calibration_of(plan: Plan) -> dict[str, Any] | None:
    """How far the latest reward model can be believed; None where the run has trained none."""
    trained = [planned.ref for planned in plan.select("train_reward_model") if planned.ref is not None]
    if not trained:
        return None
    require_undamaged(trained[-1], "calibration.json")
    found: dict[str, Any] | None = read_json(trained[-1].directory / "calibration.json")
    return found


def grid_of(plan: Plan, statuses: list[StageStatus], *, whole: bool) -> list[dict[str, Any]]:
    """Round by round: the stages of the round, and those of its iterations, with the output of each. Of many iterations the
    first and the last ones, and how many there are between, unless all are asked for."""
    outputs: dict[tuple[str, int, int], list[str]] = {}
    for planned in plan.stages:
        key = (planned.stage, planned.place.round, planned.place.iteration)
        outputs.setdefault(key, []).extend([planned.ref.directory.name] if planned.ref else [])
    rounds: dict[int, dict[str, Any]] = {}
    numbers: dict[int, int] = {}
    for status in statuses:
        own = rounds.setdefault(status.round, {"round": status.round, "stages": [], "iterations": {}, "left_out": 0})
        numbers[status.round] = max(numbers.get(status.round, 0), status.iteration)
        found = {
            "stage": status.stage,
            "state": "committed" if status.state == "committed" else "partly" if status.committed else "pending",
            "shards": f"{status.committed} of {status.shards}",
            "rows": status.rows,
            "seconds": status.seconds,
            "reason": status.reason,
            "outputs": outputs[status.stage, status.round, status.iteration],
        }
        if status.iteration:
            own["iterations"].setdefault(status.iteration, []).append(found)
        else:
            own["stages"].append(found)
    for number, own in rounds.items():
        if not whole and numbers[number] > MOST_SHOWN:
            between = range(FIRST_SHOWN + 1, numbers[number] - LAST_SHOWN + 1)
            own["left_out"] = len(between)
            for iteration in between:
                own["iterations"].pop(iteration, None)
    return [rounds[number] for number in sorted(rounds)]
