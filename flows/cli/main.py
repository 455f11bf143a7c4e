"""``rounds``: the entry point."""

import sys

from flows.cli import alone, compare, keep, look, pages, rollouts, run, serve
from flows.cli.app import app
from flows.text import escape_what_streams_lack

for module in (run, alone, look, rollouts, compare, pages, keep, serve):
    app.add_typer(module.commands)


def main() -> None:
    escape_what_streams_lack(sys.stdout, sys.stderr)
    app()
