"""Calls and answers between the supervisor and its worker, as JSON lines."""

import dataclasses
import queue
from collections.abc import Callable, Mapping
from typing import IO, Any

from tasks.contract import StageCall
from tasks.store import Place, Ref

Report = Callable[[Mapping[str, Any]], None]
END = ""


def read_lines(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass on each line, then ``END``."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(END)


def encode_call(call: StageCall) -> dict[str, Any]:
    return dataclasses.asdict(call)


def decode_call(encoded: Mapping[str, Any]) -> StageCall:
    def ref(value: Any) -> Any:
        if isinstance(value, list):
            return [Ref(**item) for item in value]
        return value and Ref(**value)

    inputs = {name: ref(value) for name, value in encoded["inputs"].items()}
    return StageCall(**{**encoded, "place": Place(**encoded["place"]), "inputs": inputs})
