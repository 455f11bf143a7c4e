"""One line on a terminal that says what a command waits for, until there is something to show."""

import shutil
import sys


class Waiting:
    """The line of this process. Where standard error is no terminal, nothing is written."""

    def __init__(self) -> None:
        self._length = 0

    def on(self, what: str) -> None:
        """Say what is waited for, in place of what was said before."""
        self.over()
        if sys.stderr.isatty():
            line = f"{what} …"[: shutil.get_terminal_size().columns - 1]
            self._length = len(line)
            # Whatever is printed next begins where this line does.
            print(line, end="\r", file=sys.stderr, flush=True)

    def over(self) -> None:
        """Take the line away."""
        if self._length:
            # Blanks, which every terminal knows.
            print(" " * self._length, end="\r", file=sys.stderr, flush=True)
            self._length = 0


WAITING = Waiting()
