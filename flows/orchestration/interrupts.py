"""What Ctrl-C and SIGTERM do while stages run."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.worker import Workers

CANCELLED = 130
"""The exit code of a cancelled command."""
SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def interrupts_cancel(workers: Workers) -> Iterator[None]:
    """The first signal kills the workers, whereupon their stages fail as cancelled and the flow ends by itself; the second
    ends this process.

    Inside a Prefect flow, since Prefect takes SIGTERM for itself there and would wait for the running stage to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_asked = False

    def cancel(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        del number, frame
        if is_asked:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), SHOW_CURSOR)
            # Nothing is lost: a stage commits by one rename, or it did not happen.
            os._exit(CANCELLED)
        is_asked = True
        workers.cancel()

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
