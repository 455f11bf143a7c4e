"""``rounds``: the entry point."""

import gc
import sys

from flows.cli.app import app
from flows.cli.commands import alone, before, compare, keep, label, look, pages, rollouts, run, serve
from flows.text import escape_what_streams_lack

for module in (before, run, alone, look, rollouts, compare, pages, label, keep, serve):
    app.add_typer(module.commands)


def main() -> None:
    # A command makes objects and ends: to look for unreachable ones at every 700 takes a twentieth of its time.
    gc.set_threshold(50_000)
    escape_what_streams_lack(sys.stdout, sys.stderr)
    app()
