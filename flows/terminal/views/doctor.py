"""What the doctor found, in a terminal."""

from collections.abc import Sequence

from flows.doctor import OK, PROBLEM, WARNING, Finding
from flows.terminal.tables import BAD, DOUBTFUL, GOOD, Column, Table
from flows.text import printable

STYLES = {OK: GOOD, WARNING: DOUBTFUL, PROBLEM: f"bold {BAD}"}


def doctor_table(findings: Sequence[Finding]) -> Table:
    """A row for each finding; below what is wrong, what to do."""
    from rich.text import Text

    table = Table(columns=[Column(title=""), Column(title="check"), Column(title="found", wraps=True)])
    for finding in findings:
        found = Text(printable(finding.found))
        if finding.next_move:
            found.append(f"\n→ {printable(finding.next_move)}", style="bold")
        table.add_row(Text(finding.state, style=STYLES[finding.state]), finding.check, found)
    return table
