"""What is logged of any stage."""

from tasks.metrics.declared.metric import SUM, Limit, Metric, Range, Warns

HEALTH_WARNINGS = Metric(
    "health/warnings",
    "warnings",
    "metrics that warn in an iteration, and limits of `health` passed with `action: warn`; in a round's summary, "
    "warnings of the round",
    Range(words="0"),
    "the warning itself says",
    SUM,
    Warns(above=Limit(0.0)),
)
SECONDS = Metric("seconds/<stage>", "seconds", "wall time of a stage", combines=SUM)
OF_ANY_STAGE = (HEALTH_WARNINGS, SECONDS)
