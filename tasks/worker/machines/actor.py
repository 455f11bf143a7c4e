"""What runs on a node of a Ray cluster: a supervisor with its child, so that stages are executed there as they are here.

Ray places it, reserves its device and tells of its end; it knows nothing of stages. Ray is not imported here.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import environment
from tasks.contract import StageError
from tasks.worker.machines.facts import Facts, changed_to, facts_of_node, what_it_reads
from tasks.worker.supervisor import Supervisor


class Actor:
    """One worker on some node. One request at a time."""

    def __init__(self, log: str, settings: Mapping[str, str]) -> None:
        self._log, self._settings = log, settings
        self._supervisor: Supervisor | None = None

    def prepare(
        self, directory: str, probe: str, passed: Mapping[str, str], functions: Sequence[str]
    ) -> tuple[Facts, str | None]:
        """What this node is, and what it reads in the file ``probe``; from then on it works in ``directory``, and its child
        imports its libraries."""
        environment.take_over(passed)
        is_there, read = changed_to(directory), what_it_reads(Path(probe))
        facts = facts_of_node(functions if is_there else (), directory if is_there else None)
        if is_there and read is not None:
            self._supervisor = Supervisor(Path(self._log), settings=self._settings)
            self._supervisor.begin()
        return facts, read

    def ask(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What the child says of a request, as it would say it to a supervisor."""
        assert self._supervisor is not None
        supervisor, answers = self._supervisor, queue.SimpleQueue[dict[str, Any]]()

        def work() -> None:
            try:
                done = supervisor.ask(
                    request,
                    "",
                    report=lambda event: answers.put({"progress": dict(event)}),
                    # Whoever asked measures it, and whoever gives up ends this process.
                    timeout_s=None,
                    is_cancelled=lambda: False,
                )
                answers.put({"done": done})
            except StageError as error:
                supervisor.begin()
                failure = {"kind": error.kind, "message": error.message, "is_of_users_code": False, "log": error.log}
                answers.put({"error": failure})

        threading.Thread(target=work, daemon=True).start()
        answer: dict[str, Any] = {}
        while not {"done", "error"} & answer.keys():
            answer = answers.get()
            yield answer
