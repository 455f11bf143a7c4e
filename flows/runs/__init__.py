"""Runs on disk."""

from flows.runs.committed import CommittedRound, committed_round, committed_rounds, history_of
from flows.runs.workspace import RUN_FILE, WORKER_LOG, Run, create_or_open, find_run, list_runs, named_run, require_name

__all__ = [
    "RUN_FILE",
    "WORKER_LOG",
    "CommittedRound",
    "Run",
    "committed_round",
    "committed_rounds",
    "create_or_open",
    "find_run",
    "history_of",
    "list_runs",
    "named_run",
    "require_name",
]
