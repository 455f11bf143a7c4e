"""What a run has to say to MLflow, in plain data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.charts import Figure


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric. The same four fields logged twice are one point to MLflow."""

    name: str
    value: float
    step: int
    at: float
    """When the stage that measured it was committed, in seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedData:
    """A data set that a round was made from."""

    name: str
    digest: str
    source: str
    """Where it lies, as a URI."""
    used_as: str
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRound:
    """All that MLflow is told of one variant of a round."""

    number: int
    variant: str
    """The fingerprint of its report."""
    started_at: float
    ended_at: float
    points: Sequence[Point]
    num_iterations: int
    """How far the curves through all rounds go on by it."""
    data: Sequence[TrackedData] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows by the name of the artifact that MLflow shows as a table."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files and directories by their path among the artifacts."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """All that MLflow is told of a run so far."""

    uid: str
    name: str
    created_at: float
    config: Mapping[str, Any]
    rounds: Sequence[TrackedRound]
    headline: Mapping[str, str] = field(default_factory=dict)
    """The metrics that stand first on the run's page, and what they are called there."""
    charts: Mapping[str, Figure] = field(default_factory=dict)
    """Those of all rounds, by name."""
    report: Callable[[], str | None] | None = None
    """Makes the report of a run that is finished, as HTML; None where there is nothing to tell, or not all can be read."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    policy: Path | None = None
    """The final policy, as ``from_pretrained`` reads it, or its adapter, as PEFT does; None while rounds are to come."""
    policy_digest: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where a run is in MLflow."""

    experiment_id: str
    run_id: str
    rounds: Mapping[int, str]
    """MLflow's run of each round."""
