"""The Prefect server of a home: its process, who may talk to it, and how a command finds it."""

from flows.server.embedded import (
    asked,
    auth_string,
    ensure_embedded,
    is_healthy,
    kept_alive,
    log_of,
    running_server,
    server_state,
)
from flows.server.listening import listening

__all__ = [
    "asked",
    "auth_string",
    "ensure_embedded",
    "is_healthy",
    "kept_alive",
    "listening",
    "log_of",
    "running_server",
    "server_state",
]
