"""Calls and answers between the supervisor and its worker, as JSON lines."""

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
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


def served(descriptor: int) -> tuple[queue.SimpleQueue[str], Report]:
    """For a process that a supervisor has started: the requests that come in, and how it answers them."""
    answers = os.fdopen(descriptor, "w", buffering=1)
    lock = threading.Lock()
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def answer(value: Mapping[str, Any]) -> None:
        with lock:
            answers.write(json.dumps(value) + "\n")

    def read_requests() -> None:
        for line in sys.stdin:
            requests.put(line)
        # The supervisor closed the pipe or died: in the middle of a stage too, nothing of ours may go on.
        os._exit(0)

    # Ctrl-C in the terminal is for the supervisor, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=read_requests, daemon=True).start()
    return requests, answer


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
