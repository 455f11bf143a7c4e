"""Metrics: how far each can be believed, how it combines, and what it says against a run."""

from tasks.metrics.combining import combine
from tasks.metrics.declared import STDERR
from tasks.metrics.diagnosis import diagnose, warnings_at, warnings_of_round
from tasks.metrics.history import COUNTED, rows_of, through_rounds
from tasks.metrics.policy_comparison import (
    correlation,
    distinct_metric,
    distinct_share,
    empty_metric,
    gain,
    lead,
    moments,
)
from tasks.metrics.rules import NEEDED
from tasks.metrics.standard_errors import (
    correlation_stderr,
    mean_metric,
    mean_stderr,
    with_stderr,
)
from tasks.metrics.warnings import RunWarning

__all__ = [
    "COUNTED",
    "NEEDED",
    "STDERR",
    "RunWarning",
    "combine",
    "correlation",
    "correlation_stderr",
    "diagnose",
    "distinct_metric",
    "distinct_share",
    "empty_metric",
    "gain",
    "lead",
    "mean_metric",
    "mean_stderr",
    "moments",
    "rows_of",
    "through_rounds",
    "warnings_at",
    "warnings_of_round",
    "with_stderr",
]
