"""Tables that fit their terminal: columns are left out, the least important first, and told; no number is ever cut.

Where a table is too wide, its columns move together, texts give way down to a width at which they still say something, and
then columns go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flows.text import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

GAPS, TIGHT = (3, 2), (2, 1)
"""Blanks between columns, the most for which there is room."""
LEAST_TEXT = 24
"""Cells of the screen below which a column of text says too little."""
MOST_OF_A_LIST = 40
"""Cells of the screen that the first part of a list is given at most; what is longer is a sentence."""
MOST_LISTED, FIRST, LAST = 50, 5, 20
"""Rows up to which a list of iterations or stages is shown whole, and how many of a longer one are shown at its ends."""
GOOD, BAD, DOUBTFUL = "green", "red", "yellow"
"""What colours say; rich leaves them away for NO_COLOR and where there is no terminal."""
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table."""

    title: str
    is_number: bool = False
    is_text: bool = False
    """Whether a cell may be cut, and ends in … then."""
    wraps: bool = False
    """Whether a text is broken over lines instead, so that all of it is there."""
    least: int = LEAST_TEXT
    """Cells of the screen that a text is given at least, before other columns go."""
    is_list: bool = False
    """Whether a cell is cut between two of its parts alone, which commas separate, so that no number in it is."""
    drop: int = 0
    """Where not all columns fit, the one with the highest goes first, of several the last; one of 0 only where nothing
    else is left to go."""

    @property
    def gives_way(self) -> bool:
        """Whether it need not be as wide as its widest cell."""
        return self.is_text or self.wraps or self.is_list


def numbers(*titles: str, drop: int = 0) -> list[Column]:
    """Columns of numbers."""
    return [Column(title=title, is_number=True, drop=drop) for title in titles]


@dataclass(kw_only=True)
class Table:
    """A table without a frame. What looks like markup in a cell is shown as it is."""

    columns: Sequence[Column]
    gaps: Sequence[int] = GAPS
    rows: "list[tuple[list[Text], str] | Text]" = field(default_factory=list)
    """Cells with the row's style, or one line across all columns."""

    def add_row(self, *cells: object, style: str = "") -> None:
        """A cell for each column: texts of rich keep their style, all else is plain."""
        from rich.text import Text

        assert len(cells) == len(self.columns), "a row has a cell for each column"
        self.rows.append(([cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells], style))

    def add_line(self, text: str) -> None:
        """A line across all columns, such as what is said of rows that are left out."""
        from rich.text import Text

        self.rows.append(Text(text, style="dim"))

    def fitted(self, width: int) -> "tuple[list[RenderableType], list[str]]":
        """The table in so many columns of a terminal, and the titles of what is left out of it."""
        shown, gap = self._that_fit(width)
        widths = self._shared(shown, width - gap * (len(shown) - 1))
        parts: list[Any] = [self._part(shown, widths, gap, with_head=True)]
        for row in self.rows:
            if not isinstance(row, tuple):
                parts += [row, self._part(shown, widths, gap, with_head=False)]
            else:
                parts[-1].add_row(*(self._cell(row[0][at], at, widths[at]) for at in shown), style=row[1])
        dropped = [c.title for at, c in enumerate(self.columns) if at not in shown and self._says_something(at)]
        return [part for part in parts if getattr(part, "row_count", 1) or part is parts[0]], dropped

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield View([self])

    def _part(self, shown: Sequence[int], widths: dict[int, int], gap: int, *, with_head: bool) -> "RichTable":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=with_head)
        table.padding = (0, gap // 2, 0, (gap - 1) // 2)
        for at in shown:
            column = self.columns[at]
            table.add_column(
                Text("\n".join(map(printable, column.title.splitlines()))),
                justify="right" if column.is_number else "left",
                # Titles of several lines end together; texts of several lines begin together.
                vertical="top" if any(own.wraps for own in self.columns) else "bottom",
                width=widths[at],
                no_wrap=not column.wraps,
                overflow="fold" if column.wraps else "ellipsis",
            )
        return table

    def _cell(self, cell: "Text", at: int, width: int) -> "Text":
        """A cell in the width of its column."""
        if not self.columns[at].is_list or cell.cell_len <= width:
            return cell
        parts = cell.plain.split(", ")
        while len(parts) > 1 and sum(map(len, parts)) + 2 * len(parts) + 1 > width:
            parts.pop()
        return cell[: len(", ".join(parts))] + ", …"

    def _natural(self, at: int) -> int:
        """The width of a column at which nothing of it is cut."""
        from rich.cells import cell_len

        head = max((cell_len(printable(line)) for line in self.columns[at].title.splitlines()), default=0)
        return max([head, *(row[0][at].cell_len for row in self.rows if isinstance(row, tuple))])

    def _least(self, at: int) -> int:
        """The width below which a column goes rather than being cut."""
        column, natural = self.columns[at], self._natural(at)
        if column.is_text or column.wraps:
            return min(natural, column.least)
        if not column.is_list:
            return natural
        cells = [row[0][at].plain for row in self.rows if isinstance(row, tuple)]
        first = max((len(cell.partition(", ")[0]) + len(", …") for cell in cells), default=0)
        return min(natural, first, MOST_OF_A_LIST)

    def _that_fit(self, width: int) -> tuple[list[int], int]:
        """The columns that are shown, and the blanks between them."""
        least = [self._least(at) for at in range(len(self.columns))]
        # Columns without a cell that says something are no loss.
        shown = [at for at, column in enumerate(self.columns) if not column.drop or self._says_something(at)]
        while True:
            for gap in self.gaps:
                if sum(least[at] for at in shown) + gap * (len(shown) - 1) <= width:
                    return shown, gap
            # Rather no column than one whose numbers are cut.
            can_go = [at for at in shown if self.columns[at].drop] or shown[1:]
            if not can_go:
                return shown, self.gaps[-1]
            shown.remove(max(can_go, key=lambda at: (self.columns[at].drop, at)))

    def _says_something(self, at: int) -> bool:
        return any(row[0][at].plain for row in self.rows if isinstance(row, tuple))

    def _shared(self, shown: Sequence[int], width: int) -> dict[int, int]:
        """The width of each column: what numbers leave is shared by texts as they need it."""
        widths = {at: self._natural(at) for at in shown}
        texts = [at for at in shown if self.columns[at].gives_way]
        left = width - sum(widths[at] for at in shown if at not in texts)
        # Those that need least first, so that what they leave goes to the others.
        for position, at in enumerate(sorted(texts, key=lambda at: widths[at])):
            widths[at] = max(1, min(widths[at], left // (len(texts) - position)))
            left -= widths[at]
        return widths


@dataclass(frozen=True)
class View:
    """Tables and lines below each other, and at the end what of the tables had no room."""

    parts: "Sequence[Table | RenderableType]"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        left_out: list[str] = []
        for part in self.parts:
            if isinstance(part, Table):
                rendered, dropped = part.fitted(options.max_width)
                yield from rendered
                left_out += dropped
            else:
                yield part
        if left_out:
            names = ", ".join(dict.fromkeys(" ".join(title.split()) for title in left_out if title.strip()))
            yield Text(f"no room for: {names}; a wider terminal shows them, --json all", style="dim")


def plain_table(*titles: str) -> Table:
    """A table of texts that are shown whole."""
    return Table(columns=[Column(title=title) for title in titles])


@dataclass(frozen=True, slots=True)
class Hidden(Generic[Item]):
    """What a list leaves out in its middle."""

    items: Sequence[Item]


def folded(items: Sequence[Item], *, whole: bool = False, most: int = MOST_LISTED) -> "list[Item | Hidden[Item]]":
    """The items; of more than ``most`` the first and the last ones, and what is between them as one."""
    if whole or len(items) <= most:
        return list(items)
    first, last = min(FIRST, most // 4), min(LAST, most - most // 4 - 1)
    return [*items[:first], Hidden(items[first:-last]), *items[-last:]]
