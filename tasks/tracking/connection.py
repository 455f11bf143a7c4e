"""A client of MLflow whose store is ready, and that says nothing on the terminal."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks import environment
from tasks.store import DatabaseTemplate, wait_in_turn
from tasks.tracking.addresses import tracking_uri
from tasks.tracking.database import database, embedded_uri, follow_home

if TYPE_CHECKING:
    from mlflow import MlflowClient

MIGRATED = DatabaseTemplate(
    library="mlflow",
    migrations="store/db_migrations/versions",
    made_with=("sqlalchemy", "alembic"),
    filled=frozenset({"alembic_version", "workspaces"}),
    # The one that MLflow makes by itself, whose artifacts would lie in that home's working directory.
    emptied=("experiments",),
)


def import_mlflow(home: Path) -> None:
    """Import what :func:`connected` needs, which takes seconds, while there is something else to wait for."""
    if tracking_uri(home) == embedded_uri(home):
        environment.forget_other_mlflow()
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    silence()


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
        is_new = is_embedded and not database(home).exists()
        is_migrated = is_new and MIGRATED.place(database(home))
        if is_embedded:
            follow_home(home)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        if is_new and not is_migrated:
            MIGRATED.keep(database(home))
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
