"""MLflow as an outbox: what is committed is logged once, with the time at which it was committed.

One run of ours is one MLflow run (the parent), with one curve per metric through all rounds, and each variant of a round's
report is a child of it. Runs are found by tags, so no id of MLflow's is kept anywhere. A child is filled in any number of
attempts: everything in it follows from committed files, and its tag ``rounds.complete`` is set last. Where that tag is,
nothing is logged again.

MLflow never forgets a point or a parameter, and two points at one step would make a zigzag of a curve. So a parent has one
history: where a round that it shows is replaced, a new parent takes over, with the children that stay, and the old one
keeps its curves as those of earlier settings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import environment
from tasks.errors import TrackingError
from tasks.metrics import STDERR
from tasks.store import canonical_json, digest_text
from tasks.tracking.addresses import tracking_uri
from tasks.tracking.charts_page import charts_page
from tasks.tracking.connection import connected
from tasks.tracking.database import artifacts_uri
from tasks.tracking.policies import log_policy
from tasks.tracking.texts import batches, config_text, flattened, milliseconds, table_text
from tasks.tracking.tracked import Point, Published, TrackedData, TrackedRound, TrackedRun

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

# Limits of one request of MLflow's REST interface.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
MAX_KEY_LENGTH = 250
# So that MLflow's pages show the experiment as training, not as prompts and traces.
KIND = {"mlflow.experimentKind": "custom_model_development"}
CHARTS, REPORT = "charts.html", "report.html"


class Tracking:
    """An experiment in a tracking store. Raises what the store raises; every call can be repeated."""

    def __init__(self, home: Path, experiment: str) -> None:
        self.uri = tracking_uri(home)
        self._client = connected(self.uri, home)
        self._experiment_id = self._experiment(experiment, None if environment.mlflow_tracking_uri() else home)

    def publish(self, run: TrackedRun) -> Published:
        """Log what is not there yet."""
        found = self._runs_of(run.uid)
        known = {tracked.variant: child_of(tracked, found) for tracked in run.rounds}
        parent = self._parent_of(run, found, known)
        children = {}
        for tracked in run.rounds:
            child = known[tracked.variant] or self._new_child(run, tracked, parent)
            if "rounds.complete" not in child.data.tags:
                self._fill(child, run, tracked)
                self._client.set_tag(child.info.run_id, "rounds.complete", "yes")
            self._set_tags(child, {"mlflow.parentRunId": parent.info.run_id})
            children[tracked.number] = child.info.run_id
        self._bring_up_to_date(parent, run, children)
        self._set_aside([r for r in found if is_parent(r) and r.info.run_id != parent.info.run_id], run)
        return Published(experiment_id=self._experiment_id, run_id=parent.info.run_id, rounds=children)

    def _experiment(self, name: str, home: Path | None) -> str:
        """The experiment's id; made if there is none. In the embedded database its artifacts lie beside it."""
        from mlflow.exceptions import MlflowException

        location = artifacts_uri(home) if home else None
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=location, tags=KIND))
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

    def _parent_of(
        self, run: TrackedRun, found: "Sequence[MlflowRun]", known: "Mapping[str, MlflowRun | None]"
    ) -> "MlflowRun":
        """The parent that shows no other variant of any of these rounds, and most of them; made if there is none."""
        tags = {f"rounds.round_{tracked.number}": known[tracked.variant] for tracked in run.rounds}

        def shows(parent: "MlflowRun", *, same: bool) -> int:
            shown = [(parent.data.tags.get(tag), child.info.run_id if child else None) for tag, child in tags.items()]
            return sum(there is not None and (there == wanted) is same for there, wanted in shown)

        fitting = [r for r in found if is_parent(r) and not shows(r, same=False)]
        if fitting:
            return max(fitting, key=lambda parent: shows(parent, same=True))
        return self._client.create_run(
            self._experiment_id,
            start_time=milliseconds(run.created_at),
            tags={"rounds.run_uid": run.uid, "mlflow.source.name": "rlhf-rounds", "mlflow.source.type": "LOCAL"},
            run_name=run.name,
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
        self._set_tags(child, {**tracked.tags, **shown_tables(tracked.tables)})
        self._client.set_terminated(run_id, "FINISHED", end_time=milliseconds(tracked.ended_at))

    def _bring_up_to_date(self, parent: "MlflowRun", run: TrackedRun, children: Mapping[int, str]) -> None:
        """What the parent says of the run as a whole, as of now."""
        run_id = parent.info.run_id
        # Before a point of them is logged: whose points these are.
        self._set_tags(parent, {f"rounds.round_{number}": child_id for number, child_id in children.items()})
        self._log_rounds(parent, run)
        digest = digest_text(canonical_json(run.config))
        before = parent.data.tags.get("rounds.config")
        if before in (None, digest):
            # Parameters cannot be changed, so those of the parent stay what it was first logged with.
            self._log_params(parent, run.config)
        if before != digest:
            self._client.log_text(run_id, config_text(run.config), "config.yaml")
        if run.policy is not None:
            log_policy(self._client, self.uri, parent, run)
        self._set_tags(parent, {**run.tags, "rounds.config": digest})
        if parent.info.run_name != run.name:
            self._client.update_run(run_id, name=run.name)
        if run.policy is None:
            if parent.info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
        elif (parent.info.status, parent.info.end_time) != ("FINISHED", milliseconds(run.rounds[-1].ended_at)):
            self._client.set_terminated(run_id, "FINISHED", end_time=milliseconds(run.rounds[-1].ended_at))

    def _log_rounds(self, parent: "MlflowRun", run: TrackedRun) -> None:
        """Have the curves of the parent go on through the rounds that it does not show yet."""
        logged = parent.data.tags.get("rounds.logged", "").split()
        iterations_before = 0
        for tracked in run.rounds:
            if str(tracked.number) not in logged:
                points = [replace(point, step=iterations_before + point.step) for point in tracked.points]
                # MLflow lists metrics in the order in which it first hears of them.
                first = [
                    replace(p, name=called) for name, called in run.headline.items() for p in points if p.name == name
                ]
                # Standard errors are shown with the round: here they would be every third chart.
                self._log_points(parent, [*first, *(p for p in points if not p.name.endswith(STDERR))])
                self._log_data(parent, tracked.data)
            iterations_before += tracked.num_iterations
        numbers = [str(tracked.number) for tracked in run.rounds]
        if set(numbers) <= set(logged):
            return
        if run.charts:
            self._client.log_text(parent.info.run_id, charts_page(run.name, run.charts), CHARTS)
        if run.report is not None and (page := run.report()) is not None:
            self._client.log_text(parent.info.run_id, page, REPORT)
        for name, rows in run.tables.items():
            self._client.log_text(parent.info.run_id, table_text(rows), name)
        done = " ".join(dict.fromkeys([*logged, *numbers]))
        self._set_tags(parent, {**shown_tables(run.tables), "rounds.logged": done})

    def _set_aside(self, parents: "Sequence[MlflowRun]", run: TrackedRun) -> None:
        """Have parents of which a round was replaced say so."""
        name = f"{run.name} (earlier settings)"
        for parent in parents:
            if parent.info.status == "RUNNING":
                self._client.update_run(parent.info.run_id, status="KILLED")
            if parent.info.run_name != name:
                self._client.update_run(parent.info.run_id, name=name)

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


def is_parent(run: "MlflowRun") -> bool:
    return "rounds.variant" not in run.data.tags


def child_of(tracked: TrackedRound, found: "Sequence[MlflowRun]") -> "MlflowRun | None":
    """The child of that variant of a round; of two that a repeated request once made, the finished one counts."""
    known = [r for r in found if r.data.tags.get("rounds.variant") == tracked.variant]
    return min(known, key=lambda r: "rounds.complete" not in r.data.tags, default=None)


def shown_tables(tables: Mapping[str, Any]) -> dict[str, str]:
    """The tag that log_table sets; log_table itself would append the rows to those of an earlier attempt."""
    shown = [{"path": name, "type": "table"} for name in tables]
    return {"mlflow.loggedArtifacts": json.dumps(shown)} if shown else {}
