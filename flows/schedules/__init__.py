"""Schedules of a home, and Prefect deployments that execute what is due."""

from flows.schedules.arrivals import growing_patterns

__all__ = ["growing_patterns"]
