"""What a home holds: runs in progress or broken off, and whether its databases can be read."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from flows.doctor.finding import OK, PROBLEM, WARNING, Finding
from flows.runs import Run, list_runs
from tasks import environment
from tasks.errors import UserError

PATIENCE_S = 10.0
"""So long a database is looked through; a large one may not be finished by then, and is not called damaged."""
DATABASES = {
    "prefect/prefect.db": "rounds down, then move it away: Prefect's pages begin anew, and no run loses anything",
    "mlflow/mlflow.db": "move it away: the next command on a run logs again what is committed",
}


def check_home_state(home: Path) -> list[Finding]:
    runs = list_runs(home)
    found = [finding for run in runs if (finding := check_run(run)) is not None]
    if not found:
        what = (
            f"{len(runs)} run{'s' * (len(runs) != 1)} in {home}, none in progress" if runs else f"no runs yet in {home}"
        )
        found = [Finding(check="runs", state=OK, found=what)]
    return [*found, *(own for name, move in DATABASES.items() if (own := check_database(home / name, move)))]


def check_run(run: Run) -> Finding | None:
    """None for a run at rest that can be read."""
    who = written_lock(run)
    rounds = f"rounds {environment.home_option(run.home)}"
    if run.is_in_progress():
        return Finding(check="runs", state=OK, found=f"{run.name} is in progress in {who or 'another process'}")
    try:
        _ = run.config
    except UserError as error:
        move = f"restore its run.json from a backup, or remove {run.root}"
        return Finding(check="runs", state=WARNING, found=f"{run.name} cannot be read: {error}", next_move=move)
    if who:
        found = f"{run.name} was broken off: {who} ended without a word. Nothing that was committed is lost"
        return Finding(check="runs", state=WARNING, found=found, next_move=f"{rounds}rerun {run.name} goes on with it")
    return None


def written_lock(run: Run) -> str:
    """Who wrote into the run's lock and did not come to the end; empty where nobody did."""
    try:
        return (run.root / "lock").read_text(errors="replace").strip()
    except OSError:
        return ""


def check_database(path: Path, next_move: str) -> Finding | None:
    """None where there is no such database yet."""
    if not path.exists():
        return None
    check = "databases"
    try:
        said = integrity(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and str(error) in ("interrupted", "database is locked"):
            return Finding(check=check, state=OK, found=f"{path.name}: in use or large; no damage seen")
        said = str(error)
    if said == "ok":
        return Finding(check=check, state=OK, found=f"{path.name} is sound")
    return Finding(check=check, state=PROBLEM, found=f"{path} is damaged: {said}", next_move=next_move)


def integrity(path: Path) -> str:
    """What SQLite says of a database, which is only read."""
    deadline = time.monotonic() + PATIENCE_S
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=PATIENCE_S)) as connection:
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 100_000)
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        return " ".join(str(said).split())
