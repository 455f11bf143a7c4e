"""MLflow and charts: what is committed is logged once, and drawn."""

from tasks.tracking.addresses import run_page, server_page, where_to_look
from tasks.tracking.connection import import_mlflow
from tasks.tracking.database import is_logged
from tasks.tracking.outbox import Tracking
from tasks.tracking.server import mlflow_server
from tasks.tracking.tracked import Point, Published, TrackedData, TrackedRound, TrackedRun

__all__ = [
    "Point",
    "Published",
    "TrackedData",
    "TrackedRound",
    "TrackedRun",
    "Tracking",
    "import_mlflow",
    "is_logged",
    "mlflow_server",
    "run_page",
    "server_page",
    "where_to_look",
]
