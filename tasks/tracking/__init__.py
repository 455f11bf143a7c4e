"""MLflow and charts: what is committed is logged once, and drawn."""

from tasks.tracking.outbox import (
    Point,
    Published,
    TrackedData,
    TrackedRound,
    TrackedRun,
    Tracking,
    run_page,
    where_to_look,
)

__all__ = ["Point", "Published", "TrackedData", "TrackedRound", "TrackedRun", "Tracking", "run_page", "where_to_look"]
