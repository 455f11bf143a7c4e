"""What a run will find, before it is started: its sources, its models, and how long they take."""

from tasks.preview.look import look

__all__ = ["look"]
