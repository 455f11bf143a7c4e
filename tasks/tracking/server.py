"""MLflow's own server over a home's database, to look at its pages."""

import signal
import subprocess
import sys
from pathlib import Path

from tasks import environment
from tasks.tracking.addresses import tracking_uri
from tasks.tracking.connection import locked
from tasks.tracking.database import artifacts_uri, database, follow_home

GRACE_S = 10.0


def serve_mlflow(home: Path, port: int) -> int:
    """Serve until the process is interrupted: one worker, on this machine alone. Returns the server's exit status."""
    database(home).parent.mkdir(parents=True, exist_ok=True)
    with locked(home / "mlflow"):
        follow_home(home)
    # Artifacts are read by the browser through the server, from where the database says that they lie.
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", tracking_uri(home), "--artifacts-destination", artifacts_uri(home)]
    server = subprocess.Popen(command, env=environment.mlflow_server_environment(), stdout=subprocess.DEVNULL)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                server.kill()
