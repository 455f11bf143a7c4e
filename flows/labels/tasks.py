"""What people are asked: a prompt and responses to it, of which they say which is best."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Prompt = str | list[dict[str, str]]
"""Text, or the messages of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTask:
    """One prompt with responses to rank."""

    task_id: str
    prompt: Prompt
    responses: tuple[str, ...]
    rollout_ids: tuple[str, ...]
    scores: tuple[float | None, ...] = ()
    """Of the run, for what is told of quality; annotators do not see them. Empty where there are none."""
    why: str = ""
    """By what it was chosen."""
    repeats: str | None = None
    """The task that it asks again, so that people can be held against themselves."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "LabelTask":
        lists = {name: tuple(found[name]) for name in ("responses", "rollout_ids", "scores")}
        return cls(**{**found, **lists})
