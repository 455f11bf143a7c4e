"""MLflow as an outbox: what is committed is logged once, with the time at which it was committed. The one place that
imports mlflow.

One run of ours is one MLflow run (the parent), and each variant of a round's report is a child of it. Runs are found by
tags, so no id of MLflow's is kept anywhere. A child is filled in any number of attempts: everything in it follows from
committed files, and its tag ``rounds.complete`` is set last. Where that tag is, nothing is logged again.
"""

import contextlib
import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tasks import environment
from tasks.errors import TrackingError
from tasks.store import canonical_json, digest_text, wait_in_turn
from tasks.tracking.addresses import tracking_uri
from tasks.tracking.database import artifacts_uri, embedded_uri, follow_home
from tasks.tracking.tracked import Point, Published, TrackedData, TrackedRound, TrackedRun
from tasks.yaml_text import write_yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# Limits of one request of MLflow's REST interface, and of one value.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_KEY_LENGTH = 250
Item = TypeVar("Item")
MODEL = "model"
"""Where the final policy lies among the artifacts of the parent."""


class Tracking:
    """An experiment in a tracking store. Raises what the store raises; every call can be repeated."""

    def __init__(self, home: Path, experiment: str) -> None:
        self.uri = tracking_uri(home)
        self._client = connected(self.uri, home)
        self._experiment_id = self._experiment(experiment, None if environment.mlflow_tracking_uri() else home)

    def publish(self, run: TrackedRun) -> Published:
        """Log what is not there yet."""
        found = self._runs_of(run.uid)
        parent = next((r for r in found if "rounds.variant" not in r.data.tags), None) or self._new_parent(run)
        children = {}
        for tracked in run.rounds:
            known = [r for r in found if r.data.tags.get("rounds.variant") == tracked.variant]
            # Of two that a repeated request once made, the finished one counts.
            known.sort(key=lambda r: "rounds.complete" not in r.data.tags)
            child = known[0] if known else self._new_child(run, tracked, parent)
            if "rounds.complete" not in child.data.tags:
                self._fill(child, run, tracked)
                of_round = [Point(n, v, tracked.number, tracked.ended_at) for n, v in tracked.summary.items()]
                self._log_points(parent, of_round)
                self._log_data(parent, tracked.data)
                self._client.set_tag(child.info.run_id, "rounds.complete", "yes")
            children[tracked.number] = child.info.run_id
        self._bring_up_to_date(parent, run, children)
        return Published(experiment_id=self._experiment_id, run_id=parent.info.run_id, rounds=children)

    def _experiment(self, name: str, home: Path | None) -> str:
        """The experiment's id; made if there is none. In the embedded database its artifacts lie beside it."""
        from mlflow.exceptions import MlflowException

        location = artifacts_uri(home) if home else None
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException:
                # Another run may have made it since; where it did not, the error was a real one.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(f"MLflow's experiment {name!r} is deleted; restore it, or set tracking.experiment")
        return str(found.experiment_id)

    def _runs_of(self, uid: str) -> "list[MlflowRun]":
        """The parent and all children of a run of ours, the oldest first."""
        found: list[MlflowRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                filter_string=f"tags.`rounds.run_uid` = '{uid}'",
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def _new_parent(self, run: TrackedRun) -> "MlflowRun":
        tags = {"rounds.run_uid": run.uid, "mlflow.source.name": "rlhf-rounds", "mlflow.source.type": "LOCAL"}
        return self._client.create_run(
            self._experiment_id, start_time=milliseconds(run.created_at), tags=tags, run_name=run.name
        )

    def _new_child(self, run: TrackedRun, tracked: TrackedRound, parent: "MlflowRun") -> "MlflowRun":
        tags = {
            "rounds.run_uid": run.uid,
            "rounds.variant": tracked.variant,
            "rounds.round": str(tracked.number),
            "mlflow.parentRunId": parent.info.run_id,
            "mlflow.source.name": "rlhf-rounds",
            "mlflow.source.type": "LOCAL",
        }
        return self._client.create_run(
            self._experiment_id,
            start_time=milliseconds(tracked.started_at),
            tags=tags,
            run_name=f"{run.name}-round-{tracked.number}",
        )

    def _fill(self, child: "MlflowRun", run: TrackedRun, tracked: TrackedRound) -> None:
        """Log a round; what an interrupted attempt logged is logged again and stays the same."""
        run_id = child.info.run_id
        self._log_points(child, tracked.points)
        self._log_params(child, run.config)
        self._log_data(child, tracked.data)
        self._client.log_text(run_id, config_text(run.config), "config.yaml")
        for name, path in tracked.files.items():
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), name)
            else:
                self._client.log_artifact(run_id, str(path), str(Path(name).parent))
        for name, rows in tracked.tables.items():
            self._client.log_text(run_id, table_text(rows), name)
        # The tag that log_table sets; log_table itself would append the rows to those of an earlier attempt.
        shown = json.dumps([{"path": name, "type": "table"} for name in tracked.tables])
        self._set_tags(child, {**tracked.tags, "mlflow.loggedArtifacts": shown})
        self._client.set_terminated(run_id, "FINISHED", end_time=milliseconds(tracked.ended_at))

    def _bring_up_to_date(self, parent: "MlflowRun", run: TrackedRun, children: Mapping[int, str]) -> None:
        """What the parent says of the run as a whole, as of now."""
        run_id = parent.info.run_id
        digest = digest_text(canonical_json(run.config))
        before = parent.data.tags.get("rounds.config")
        if before in (None, digest):
            # Parameters cannot be changed, so those of the parent stay what the run was first logged with.
            self._log_params(parent, run.config)
        if before != digest:
            self._client.log_text(run_id, config_text(run.config), "config.yaml")
        if run.policy is not None and parent.data.tags.get("rounds.policy") != run.policy_digest:
            self._replace_model(parent, run.policy)
            self._set_tags(parent, {"rounds.policy": run.policy_digest})
        current = {f"rounds.round_{number}": child_id for number, child_id in children.items()}
        self._set_tags(parent, {**run.tags, **current, "rounds.config": digest})
        if run.policy is None:
            if parent.info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
        elif (parent.info.status, parent.info.end_time) != ("FINISHED", milliseconds(run.rounds[-1].ended_at)):
            self._client.set_terminated(run_id, "FINISHED", end_time=milliseconds(run.rounds[-1].ended_at))

    def _replace_model(self, parent: "MlflowRun", policy: Path) -> None:
        """The policy as the only content of its artifact directory: weights of two policies must never mix."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run_id = parent.info.run_id
        if any(entry.path == MODEL for entry in self._client.list_artifacts(run_id)):
            # Until the tag is back, the directory counts as incomplete.
            self._set_tags(parent, {"rounds.policy": ""})
            get_artifact_repository(parent.info.artifact_uri, tracking_uri=self.uri).delete_artifacts(MODEL)
        self._client.log_artifacts(run_id, str(policy), MODEL)

    def _log_points(self, run: "MlflowRun", points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(p.name, p.value, milliseconds(p.at), p.step) for p in points]
        for batch in batches(metrics, METRICS_PER_BATCH):
            self._client.log_batch(run.info.run_id, metrics=batch)

    def _log_params(self, run: "MlflowRun", config: Mapping[str, Any]) -> None:
        """Log the parameters that the run lacks; one that it has cannot be changed."""
        from mlflow.entities import Param

        params = [Param(k, v) for k, v in flattened(config) if k not in run.data.params and len(k) <= MAX_KEY_LENGTH]
        for batch in batches(params, PARAMS_PER_BATCH):
            self._client.log_batch(run.info.run_id, params=batch)

    def _log_data(self, run: "MlflowRun", data: Sequence[TrackedData]) -> None:
        """Log data sets by our own digests: MLflow keeps one of each name and digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=known.name,
                    digest=known.digest,
                    source_type="local" if known.source.startswith("file:") else "external",
                    source=canonical_json({"uri": known.source}),
                    profile=None if known.rows is None else canonical_json({"num_rows": known.rows}),
                ),
                [InputTag("mlflow.data.context", known.used_as)],
            )
            for known in data
        ]
        if inputs:
            self._client.log_inputs(run.info.run_id, inputs)

    def _set_tags(self, run: "MlflowRun", tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
        if changed:
            self._client.log_batch(run.info.run_id, tags=changed)


def connected(uri: str, home: Path) -> "MlflowClient":
    """A client whose store is ready. Two first users of a fresh database at once would corrupt it for good."""
    is_embedded = uri == embedded_uri(home)
    if is_embedded:
        environment.forget_other_mlflow()
    silence()
    from mlflow import MlflowClient

    if urlsplit(uri).scheme in ("http", "https"):
        return MlflowClient(uri)
    with locked(home / "mlflow"):
        if is_embedded:
            follow_home(home)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only process that opens the database of this home."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        wait_in_turn(lock)
        yield


def silence() -> None:
    """Keep MLflow's log lines and warnings, and those on connections that it tries again, off the terminal."""
    import mlflow  # noqa: F401  # its import sets the levels that are raised here

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"mlflow(\.|$)")


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """``a.b.0.c`` and text for each leaf of a configuration. A list of plain values is one leaf."""
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping) and all(re.fullmatch(r"[\w-]+", str(key)) for key in value):
        entries = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        entries = [(str(position), item) for position, item in enumerate(value)]
    if entries:
        for key, item in entries:
            yield from flattened(item, f"{path}.{key}" if path else key)
        return
    text = value if isinstance(value, str) else json.dumps(value)
    if text:
        yield path, text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 1] + "…"


def config_text(config: Mapping[str, Any]) -> str:
    return write_yaml(dict(config))


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in the form that MLflow's pages show as a table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = [[finite(row.get(name)) for name in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
