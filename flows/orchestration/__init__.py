"""Prefect: the session of a run's tasks, its launch, its interrupts, and what its pages and MLflow are told."""

from flows.orchestration.interrupts import interrupts_cancel

__all__ = ["interrupts_cancel"]
