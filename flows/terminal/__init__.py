"""What the terminal shows: words, tables, progress."""

from flows.terminal.observer import Observer

__all__ = ["Observer"]
