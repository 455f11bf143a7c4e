"""Options that several commands share, exit codes, and how a command shows what it found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

FAILED, MISTAKE, UNREPORTED, CANCELLED = 1, 2, 3, 130
AttemptId = Annotated[
    str | None, typer.Option(metavar="ID", help="An earlier attempt, as rounds status --attempts lists it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a field; repeatable.")
]
RunName = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name or directory; default: the latest.")]


def show(renderable: "RenderableType") -> None:
    """Print a table on standard output; into a pipe as wide as it needs to be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(renderable)


def show_lines(lines: Sequence[str]) -> None:
    """Print lines as they are, however long."""
    if lines:
        print("\n".join(lines))


def print_json(value: Any) -> None:
    from flows.text import json_text

    print(json_text(value, indent=1))
