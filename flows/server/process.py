"""The process of a home's Prefect server: ``python -m flows.server.process [PORT]``, started in the home's ``prefect/``.

It holds a lock on ``server.json``, in which it says who and where it is, for as long as it lives. So a database has one
server at most, however often a start is interrupted; and what the file says is true as long as the lock is held, in this
directory and in no copy of it.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from flows.server.guard import Guard
from flows.server.identity import AUTH_FILE, STATE_FILE, identity, place_of
from tasks import environment
from tasks.store import DatabaseTemplate, exclusive

DATABASE = "prefect.db"
MIGRATED = DatabaseTemplate(
    library="prefect",
    migrations="server/database/_migrations/versions/sqlite",
    made_with=("sqlalchemy", "alembic", "aiosqlite"),
    filled=frozenset({"alembic_version"}),
)


def main() -> None:
    directory = Path.cwd()
    with open_for_good(directory / STATE_FILE) as state:
        if not exclusive(state):
            # Another one was faster; whoever started this one finds it.
            return
        directory.chmod(0o700)
        listening = bound(int(sys.argv[1])) if len(sys.argv) > 1 else bound_as_before(state)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        say_who(state, url, directory)
        serve(listening, url, kept_secret(directory / AUTH_FILE))


def open_for_good(path: Path) -> IO[str]:
    """The state file, not shared with a backup that holds it by a hard link: the lock would be shared too."""
    if path.exists() and path.stat().st_nlink > 1:
        path.unlink()
    return path.open("a+")


def bound(port: int) -> socket.socket:
    """A socket of this machine alone. It listens once the server is ready; until then nobody can connect."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    return listening


def bound_as_before(state: IO[str]) -> socket.socket:
    """At the port of the last time if it is free, so that a browser that was logged in still is; else at any."""
    try:
        state.seek(0)
        return bound(int(json.load(state)["url"].rsplit(":", 1)[1].split("/")[0]))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return bound(0)


def say_who(state: IO[str], url: str, directory: Path) -> None:
    """Write into the locked file who holds the lock."""
    state.seek(0)
    state.truncate()
    json.dump({"url": url, **identity(os.getpid()), "directory": place_of(directory)}, state)
    state.flush()
    os.fsync(state.fileno())


def kept_secret(path: Path) -> str:
    """The home's authentication string, ``user:password``; a new one if there is none that only its owner could read."""
    with suppress(OSError):
        if path.stat().st_mode & 0o077 == 0 and (secret := path.read_text().strip()):
            return secret
    secret = f"rounds:{secrets.token_urlsafe(24)}"
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(f"{secret}\n")
    new.replace(path)
    return secret


def serve(listening: socket.socket, url: str, secret: str) -> None:
    """Be the server until a signal ends it."""
    # In this process alone, so that neither a list of processes nor another program's environment shows it.
    environment.be_server(url, secret, DATABASE)
    make_database(Path(DATABASE))
    import uvicorn
    from prefect.server.api.server import create_app

    app = Guard(create_app(final=True), url, secret)
    # Lines of every request are no use, and would name what is asked for.
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=5, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def make_database(database: Path) -> None:
    """Make the database of a new home. One that is there is migrated, if need be, as the server starts."""
    if database.exists() or MIGRATED.place(database):
        return
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    MIGRATED.keep(database)


if __name__ == "__main__":
    main()
