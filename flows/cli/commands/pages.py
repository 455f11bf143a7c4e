"""Commands of the pages: ui."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.addresses import DEFAULT_PORT
from flows.cli.options import RunName, ended_as_by_ctrl_c

if TYPE_CHECKING:
    from flows.runs import Run

commands = typer.Typer()
ROLLOUTS_OF_A_BUNDLE = 50
"""Pages of single rollouts, of each iteration."""


@commands.command()
def ui(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Begin at this run; default: at the list.")] = None,
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; another than this machine sees the runs too.")
    ] = "127.0.0.1",
    also: Annotated[
        list[Path] | None, typer.Option("--also", metavar="DIR", help="Another home to show beside; repeatable.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="No run and no queue is changed: nobody answers.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the address in the browser.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="DIR", help="Write the run's pages as files that need no server, and end."),
    ] = None,
) -> None:
    """Look at runs in a browser: results, rollouts token by token, comparisons. Nothing in it touches a training."""
    from flows.runs import find_run
    from tasks.errors import ConfigError

    found = None if run is None and bundle is None else find_run(ctx.obj, run)
    if bundle is not None and found is not None:
        write_pages(found, bundle)
        return
    from flows.pages.serve import serve

    for home in also or []:
        if not home.is_dir():
            raise ConfigError(f"--also {home}: no such directory; name a home that rounds list shows runs of")

    def ready(address: str) -> None:
        print(address, flush=True)
        if open_:
            import webbrowser

            webbrowser.open(address)

    homes = [ctx.obj if found is None else found.home, *(also or [])]
    begin = "/" if found is None else f"/runs/{found.name}"
    # What was started from the pages ends with them, also where they are told to end.
    with ended_as_by_ctrl_c():
        serve(homes, host=host, port=port, begin=begin, read_only=read_only, ready=ready)


@commands.command()
def report(
    ctx: typer.Context,
    run: RunName = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Default: RUN-report.html here.")] = None,
    rollouts: Annotated[
        int, typer.Option(metavar="N", min=4, max=10_000, help="How many rollouts it has, a quarter of each kind.")
    ] = 200,
) -> None:
    """Write one HTML file that tells all of a run and needs no network: results, charts, doubts, rollouts."""
    from flows.pages.report import write_report
    from flows.runs import find_run

    found = find_run(ctx.obj, run)
    file = Path(f"{found.name}-report.html") if to is None else to
    write_report(found, file, rollouts=rollouts)
    print(file)


def write_pages(run: "Run", directory: Path) -> None:
    """The pages of a run as files."""
    from flows.pages.bundle import write_bundle
    from flows.pages.site import Site

    written = write_bundle(Site(homes=(run.home,)), run.name, directory, rollouts=ROLLOUTS_OF_A_BUNDLE)
    print(f"{directory / 'index.html'} and {written - 1} more pages")
