"""The pages of MLflow and Prefect, which ours lead to: where they are, and MLflow's server, started when somebody asks."""

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen

from flows.server import listening, server_state
from tasks import environment
from tasks.errors import TransientError
from tasks.tracking import mlflow_server, server_page

LOOPBACK = "127.0.0.1"


class Trackers:
    """MLflow and Prefect of one home. What is started here ends with ``close``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._turn = threading.Lock()
        self._until_closed = ExitStack()
        self._server: Popen[bytes] | None = None
        self._address = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether MLflow is the user's own, a server or a database, and none is started here."""
        return environment.mlflow_tracking_uri() is not None

    @property
    def mlflow(self) -> str | None:
        """The address of MLflow's pages; None where no server of MLflow's is known."""
        if self.is_elsewhere:
            return server_page(self._home)
        return self._address if self._server is not None and self._server.poll() is None else None

    @property
    def prefect(self) -> str | None:
        """The address of Prefect's pages, where the home's server runs."""
        with suppress(TransientError):
            state = server_state(self._home, patience_s=0)
            return None if state is None else str(state["url"]).removesuffix("/api")
        return None

    def start_mlflow(self) -> None:
        """Have MLflow's server run, at a free port of this machine alone; asked for twice, there is one.

        Raises:
            TransientError: it ends, or does not answer, before it is ready.
        """
        with self._turn:
            if self.mlflow is not None or self.is_elsewhere:
                return
            self._until_closed.close()
            with listening(LOOPBACK, 0) as free:
                port = free.getsockname()[1]
            self._server = self._until_closed.enter_context(mlflow_server(self._home, port))
            self._address = f"http://{LOOPBACK}:{port}"

    def close(self) -> None:
        with self._turn:
            self._until_closed.close()
