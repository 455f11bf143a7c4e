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
    place, inputs = Place(**encoded["place"]), decode_inputs(encoded["inputs"])
    return StageCall(**{**encoded, "place": place, "inputs": inputs})


def decode_inputs(encoded: Any) -> Any:
    """A reference, or a list of them, or a mapping to them: its values are no texts, whatever its names are."""
    if isinstance(encoded, list):
        return [decode_inputs(own) for own in encoded]
    if encoded is None or isinstance(encoded.get("digest"), str):
        return encoded and Ref(**encoded)
    return {name: decode_inputs(own) for name, own in encoded.items()}
