"""MLflow's database in a home: its address, and that what it says of places stays true when the home is moved."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

# Where MLflow keeps the absolute address of artifacts.
PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
ARTIFACTS = "/mlflow/artifacts"
PATIENCE_S = 30.0


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
