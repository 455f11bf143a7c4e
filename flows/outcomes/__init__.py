"""What a run came to: states and numbers, rollouts, models; verified, replayed, exported, cleaned."""

from flows.outcomes.outputs import latest_variants
from flows.outcomes.reported import note_reported, told_reports
from flows.outcomes.results import Column, result_columns, result_rows, summary_of, warning_markdown, warnings_of
from flows.outcomes.status import (
    AskedFor,
    Overview,
    StageStatus,
    Standing,
    Step,
    outputs_asked_for,
    overview,
    reports_of,
    run_state,
    run_warnings,
    stage_statuses,
    standing_of,
    steps,
)
from flows.outcomes.upkeep import clean, verify

__all__ = [
    "AskedFor",
    "Column",
    "Overview",
    "StageStatus",
    "Standing",
    "Step",
    "clean",
    "latest_variants",
    "note_reported",
    "outputs_asked_for",
    "overview",
    "reports_of",
    "result_columns",
    "result_rows",
    "run_state",
    "run_warnings",
    "stage_statuses",
    "standing_of",
    "steps",
    "summary_of",
    "told_reports",
    "verify",
    "warning_markdown",
    "warnings_of",
]
