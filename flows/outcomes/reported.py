"""Whether all of a run has been told to Prefect and MLflow, found without asking either: by what was noted when it had been,
and by what the home's own MLflow database holds."""

from collections.abc import Sequence

from flows.config import RunConfig, dump
from flows.plan import Plan, with_code_digests
from flows.runs import Run
from tasks.store import Ref, canonical_json, digest_text
from tasks.tracking import is_logged


def note_reported(run: Run, config: RunConfig, reports: Sequence[Ref]) -> None:
    """Remember that these rounds have been told, under this configuration."""
    run.reported = reported_digest(config_digest(config), reports)


def told_reports(run: Run, config: RunConfig, plan: Plan) -> list[Ref] | None:
    """The reports of a run of which nothing is left to execute or to tell; None if there is, or if that is not known."""
    if any(planned.ref is None for planned in plan.stages) or run.unfinished_rerun:
        return None
    reports = [planned.ref for planned in plan.select("report_round") if planned.ref is not None]
    digest = config_digest(config)
    is_told = run.reported == reported_digest(digest, reports) and is_logged(
        run.home, experiment=config.tracking.experiment, run_uid=run.uid, config=digest, num_rounds=len(reports)
    )
    return reports if is_told else None


def config_digest(config: RunConfig) -> str:
    """The digest of a configuration by which MLflow's run is known to show it."""
    return digest_text(canonical_json(dump(with_code_digests(config))))


def reported_digest(config: str, reports: Sequence[Ref]) -> str:
    return digest_text(canonical_json([config, [report.digest for report in reports]]))
