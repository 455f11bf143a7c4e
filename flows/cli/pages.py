"""Commands of the pages: ui."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def ui(
    ctx: typer.Context,
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="0 takes a free one.")] = 7400,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; another than this machine sees the runs too.")
    ] = "127.0.0.1",
    also: Annotated[
        list[Path] | None, typer.Option("--also", metavar="DIR", help="Another home to show beside; repeatable.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Take no answers, notes or saved searches.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the address in the browser.")] = False,
) -> None:
    """Look at runs in a browser: results, rollouts token by token, comparisons. Nothing in it touches a training."""
    from flows.pages.serve import serve
    from tasks.errors import ConfigError

    for home in also or []:
        if not home.is_dir():
            raise ConfigError(f"--also {home}: no such directory; name a home that rounds list shows runs of")

    def ready(address: str) -> None:
        print(address, flush=True)
        if open_:
            import webbrowser

            webbrowser.open(address)

    serve([ctx.obj, *(also or [])], host=host, port=port, is_read_only=read_only, ready=ready)
