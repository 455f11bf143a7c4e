"""The final policy among MLflow's models: the directory as it is, without a flavour, which would load or run something."""

import re
from typing import TYPE_CHECKING

from tasks.tracking.tracked import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun

READY = "READY"
# Signs that MLflow refuses in the name of a model.
REFUSED = re.compile(r"[/:.%\"']")


def log_policy(client: "MlflowClient", uri: str, parent: "MlflowRun", run: TrackedRun) -> None:
    """Log the policy as the run's one model; that of an earlier state of the run goes, as its weights would add up."""
    from mlflow.entities import LoggedModelOutput

    assert run.policy is not None
    known = models_of(client, parent.info.experiment_id, run.uid)
    wanted = (run.policy_digest, parent.info.run_id, READY)
    # One that is not ready was interrupted.
    if not any((m.tags.get("rounds.policy"), m.source_run_id, m.status.value) == wanted for m in known):
        made = client.create_logged_model(
            parent.info.experiment_id,
            name=REFUSED.sub("-", f"{run.name}-policy"),
            source_run_id=parent.info.run_id,
            tags={"rounds.run_uid": run.uid, "rounds.policy": run.policy_digest},
            model_type="policy",
        )
        client.log_model_artifacts(made.model_id, str(run.policy))
        client.log_outputs(parent.info.run_id, [LoggedModelOutput(made.model_id, step=0)])
        client.finalize_logged_model(made.model_id, READY)
        known = models_of(client, parent.info.experiment_id, run.uid)
    is_kept = False
    for model in known:
        if not is_kept and (model.tags.get("rounds.policy"), model.source_run_id, model.status.value) == wanted:
            is_kept = True
        else:
            remove(client, uri, model)


def models_of(client: "MlflowClient", experiment_id: str, uid: str) -> "list[LoggedModel]":
    """The models that were logged of a run of ours."""
    return list(client.search_logged_models([experiment_id], filter_string=f"tags.`rounds.run_uid` = '{uid}'"))


def remove(client: "MlflowClient", uri: str, model: "LoggedModel") -> None:
    """Remove a model and its files, which MLflow alone would keep."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    # In this order: a model without files would count as logged.
    client.delete_logged_model(model.model_id)
    get_artifact_repository(model.artifact_location, tracking_uri=uri).delete_artifacts()
