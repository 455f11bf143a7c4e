"""Options that several commands share, exit codes, and how a command shows what it found."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import completion

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH_OF_A_PIPE = 240
WARNING = "yellow"
FAILED, MISTAKE, UNREPORTED, CANCELLED, NO_READER = 1, 2, 3, 130, 141
AttemptId = Annotated[
    str | None, typer.Option(metavar="ID", help="An earlier attempt, as rounds status --attempts lists it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=VALUE", help="Override a field; repeatable.", autocompletion=completion.settings
    ),
]
RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN", help="A run's name or directory; default: the latest.", autocompletion=completion.runs
    ),
]


def show(renderable: "RenderableType", *, is_line: bool = False) -> None:
    """Print a table on standard output, as wide as the terminal is; into a pipe as wide as it needs to be.

    A line is printed as it is, however long.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_PIPE)
    # Rich ends the process by itself where nobody reads any more, and flushes what was printed before.
    sys.stdout.flush()
    with console.capture() as captured:
        console.print(renderable, soft_wrap=is_line, highlight=False)
    print(captured.get(), end="")


def show_lines(lines: Sequence[str], *, style: str = "") -> None:
    """Print lines as they are, however long."""
    from rich.text import Text

    if lines:
        show(Text("\n".join(lines), style=style), is_line=True)


def write_new(path: Path, text: str | None) -> None:
    """Write a file that is not there yet; without a text, only see that it is not.

    Raises:
        ConfigError: something is there already, or nothing can be.
    """
    from tasks.errors import ConfigError
    from tasks.paths import is_there, shown

    if text is None and not is_there(path):
        return
    try:
        with path.open("x") as stream:
            stream.write(text or "")
    except FileExistsError as error:
        raise ConfigError(f"{shown(path)} exists already; name another file, or remove it") from error
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be written ({error.strerror}); name another file") from error


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """A process that is told to end, or whose terminal is closed, leaves no server behind."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_json(value: Any) -> None:
    from flows.text import json_text

    print(json_text(value, indent=1))
