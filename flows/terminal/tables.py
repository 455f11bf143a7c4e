"""Plain tables that fit a terminal: columns are dropped, and no number is ever folded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from flows.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TEXT_WIDTH = 16
"""Columns of text are folded to that, before others are dropped."""
MOST_SHOWN, FIRST_SHOWN, LAST_SHOWN = 50, 3, 20
"""Of more rows than that, the first and the last are shown."""
Item = TypeVar("Item")


def plain_table(
    *titles: str, right: Sequence[str] = (), unfolded: Sequence[str] = (), drops: Sequence[str] = ()
) -> "Table":
    """A table without a frame; the columns named in ``right`` are numbers, and those in ``drops`` go, in that order, where
    the terminal is too narrow for all. Numbers are never folded, nor what is ``unfolded``: names that are copied."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in titles:
        table.add_column(
            Text("\n".join(map(printable, title.splitlines()))),
            justify="right" if title in right else "left",
            overflow="fold",
            no_wrap=title in (*right, *unfolded),
        )
    # Rich has no place for it.
    table.drops = tuple(titles.index(title) for title in drops if title in titles)  # type: ignore[attr-defined]
    return table


def add_row(table: "Table", *cells: object, style: str = "") -> None:
    """A row of plain text: what looks like markup in it is not taken for markup."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells), style=style)


def fit(table: "Table", console: "Console") -> list[str]:
    """Drop columns until the table is no wider than the console, and return what was dropped."""
    drops = list(getattr(table, "drops", ()))
    columns = list(table.columns)
    dropped: list[str] = []
    while drops and needed_width(table, console) > console.width:
        column = columns[drops.pop(0)]
        # By what it is: columns of the same cells are equal.
        table.columns[:] = [own for own in table.columns if own is not column]
        dropped.append(" ".join(str(column.header).split()))
    for position, column in enumerate(table.columns):
        column._index = position
    return dropped


def needed_width(table: "Table", console: "Console") -> int:
    """The width at which no number is folded, and texts as little as they bear."""
    from rich.measure import Measurement

    wide = console.options.update(max_width=10_000)
    between = table.padding[1] + table.padding[3] + 1
    widths = []
    for column in table.columns:
        cells = [column.header, *column.cells]
        width = max(Measurement.get(console, wide, cell).maximum for cell in cells)
        widths.append(width if column.no_wrap else min(width, TEXT_WIDTH))
    return sum(widths) + between * max(0, len(widths) - 1)


def folded(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The items that are shown, and those between the first and the last that are not."""
    if len(items) <= MOST_SHOWN:
        return list(items), []
    return [*items[:FIRST_SHOWN], *items[-LAST_SHOWN:]], list(items[FIRST_SHOWN:-LAST_SHOWN])
