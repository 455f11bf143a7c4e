"""Runs on disk."""

from flows.runs.committed import CommittedRound, committed_round, committed_rounds, history_of
from flows.runs.notes import Note, keep_note, notes, remove_note, require_own
from flows.runs.workspace import RUN_FILE, Run, create_or_open, find_run, list_runs, named_run, require_name

__all__ = [
    "RUN_FILE",
    "CommittedRound",
    "Note",
    "Run",
    "committed_round",
    "committed_rounds",
    "create_or_open",
    "find_run",
    "history_of",
    "keep_note",
    "list_runs",
    "named_run",
    "notes",
    "remove_note",
    "require_name",
    "require_own",
]
