"""``rounds``: the entry point."""

import sys

from flows.cli.app import app
from flows.cli.commands import alone, before, compare, keep, label, look, pages, rollouts, run, serve
from flows.text import escape_what_streams_lack

for module in (before, run, alone, look, rollouts, compare, pages, label, keep, serve):
    app.add_typer(module.commands)


def main() -> None:
    escape_what_streams_lack(sys.stdout, sys.stderr)
    app()
