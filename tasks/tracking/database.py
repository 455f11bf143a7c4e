"""MLflow's database in a home: its address, and that what it says of places stays true when the home is moved."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from tasks import environment

# Where MLflow keeps the absolute address of artifacts.
PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
ARTIFACTS = "/mlflow/artifacts"
PATIENCE_S = 30.0
# The parent of a run that is finished here; a home that was moved has yet to be followed.
LOGGED = """
SELECT runs.run_uuid FROM runs
JOIN experiments USING (experiment_id)
JOIN tags AS uid ON uid.run_uuid = runs.run_uuid AND uid.key = 'rounds.run_uid' AND uid.value = ?
JOIN tags AS config ON config.run_uuid = runs.run_uuid AND config.key = 'rounds.config' AND config.value = ?
WHERE experiments.name = ? AND (artifact_location NOT LIKE ? OR artifact_location = ?)
AND runs.status = 'FINISHED' AND 'active' = runs.lifecycle_stage AND 'active' = experiments.lifecycle_stage
"""
COMPLETE = """
SELECT count(*) FROM runs
JOIN tags AS parent ON parent.run_uuid = runs.run_uuid AND parent.key = 'mlflow.parentRunId' AND parent.value = ?
JOIN tags AS complete ON complete.run_uuid = runs.run_uuid AND complete.key = 'rounds.complete'
WHERE runs.lifecycle_stage = 'active'
"""


def database(home: Path) -> Path:
    return home / "mlflow" / "mlflow.db"


def embedded_uri(home: Path) -> str:
    """The address of the home's database, as MLflow takes it."""
    path = str(database(home))
    # A question mark would end the path; SQLite's own addresses can quote it.
    return f"sqlite:///file:{quote(path)}?uri=true" if "?" in path else f"sqlite:///{path}"


def artifacts_uri(home: Path) -> str:
    """Where the artifacts of the home's database lie."""
    return (home / ARTIFACTS.lstrip("/")).as_uri()


def is_logged(home: Path, *, experiment: str, run_uid: str, config: str, num_rounds: int) -> bool:
    """Whether the home's database has all of a finished run, under this configuration: what is logged last, and so many
    rounds. Where runs are logged to somewhere else, that is not known here."""
    if environment.mlflow_tracking_uri() or not database(home).exists():
        return False
    address = f"{database(home).as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE_S)) as connection:
            found = connection.execute(
                LOGGED, [run_uid, config, experiment, f"%{ARTIFACTS}", artifacts_uri(home)]
            ).fetchall()
            children = [connection.execute(COMPLETE, [parent]).fetchone()[0] for (parent,) in found]
    except sqlite3.Error:
        return False
    return max(children, default=0) >= num_rounds


def follow_home(home: Path) -> None:
    """Have a database that was moved or copied with its home name the artifacts beside it, not those of the place before."""
    if not database(home).exists():
        return
    here = artifacts_uri(home)
    with closing(sqlite3.connect(database(home), timeout=PATIENCE_S)) as connection, connection:
        known = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in known:
            # Its first user ended before there was more than a file.
            return
        located = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
        # Only ours end like this; an experiment that somebody else made here may have its artifacts anywhere.
        moved = [place for (place,) in located if place and place.endswith(ARTIFACTS) and place != here]
        for before in moved:
            for table, column in PLACES:
                if table in known:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )
