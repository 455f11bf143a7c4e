"""Where MLflow is, and the pages that a run has there."""

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tasks import environment
from tasks.tracking.database import embedded_uri
from tasks.tracking.tracked import Published


def tracking_uri(home: Path) -> str:
    """The server or database that runs are logged to: the user's own, else one file in the home."""
    return environment.mlflow_tracking_uri() or embedded_uri(home)


def run_page(home: Path, published: Published, run_id: str) -> str | None:
    """The address of a run's page; None where runs are logged to a database that no server shows yet."""
    base = server_page(home)
    # MLflow's pages are those of prompts and traces unless asked for training.
    return base and f"{base}/#/experiments/{published.experiment_id}/runs/{run_id}?workflowType=machine_learning"


def server_page(home: Path) -> str | None:
    """The address of the tracking server's pages; None for a database."""
    uri = urlsplit(tracking_uri(home))
    if uri.scheme not in ("http", "https"):
        return None
    # A password in the address must not end up in everything that links to the page.
    return urlunsplit((uri.scheme, uri.netloc.rpartition("@")[2], uri.path.rstrip("/"), "", ""))


def where_to_look(home: Path) -> str | None:
    """How a person gets to the runs in a tracking store of the user's own; None where it is the home's."""
    if environment.mlflow_tracking_uri() is None:
        return None
    # The address of a database holds its password.
    return server_page(home) or "the database of MLFLOW_TRACKING_URI"
