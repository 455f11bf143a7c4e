"""Options that several commands share, exit codes, and how a command shows what it found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import completion

if TYPE_CHECKING:
    from rich.console import RenderableType

FAILED, MISTAKE, UNREPORTED, CANCELLED = 1, 2, 3, 130
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


def show(renderable: "RenderableType") -> None:
    """Print a table on standard output; into a pipe as wide as it needs to be."""
    from rich.console import Console, Group
    from rich.table import Table

    from flows.terminal.tables import fit

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    parts = renderable.renderables if isinstance(renderable, Group) else [renderable]
    dropped = [name for part in parts if isinstance(part, Table) for name in fit(part, console)]
    console.print(renderable)
    if dropped:
        left_out = ", ".join(dict.fromkeys(dropped))
        console.print(f"left out at this width: {left_out}", style="dim", markup=False, highlight=False)


def show_lines(lines: Sequence[str]) -> None:
    """Print lines as they are, however long."""
    if lines:
        print("\n".join(lines))


def print_json(value: Any) -> None:
    from flows.text import json_text

    print(json_text(value, indent=1))
