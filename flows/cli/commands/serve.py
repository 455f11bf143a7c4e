"""Commands of servers and of the machine: up, down, schedule, serve, mlflow, doctor."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import say
from flows.cli.completion import configurations
from flows.cli.options import FAILED, Json, Overrides, ended_as_by_ctrl_c, print_json, show

commands = typer.Typer()


@commands.command()
def up(ctx: typer.Context) -> None:
    """Start the Prefect server of this home, if it does not run yet, and say how to log in to its pages."""
    from tasks import environment

    environment.quieten(hub=False)
    from flows.server import embedded as servers

    url = servers.ensure_prefect(ctx.obj)
    print(url.removesuffix("/api"))
    if url == servers.running_server(ctx.obj):
        print(f"log in with: {servers.auth_string(ctx.obj)}")


@commands.command()
def down(ctx: typer.Context) -> None:
    """Stop the Prefect server of this home."""
    from flows.runs import list_runs
    from flows.schedules.schedules import is_served
    from flows.server import embedded as servers
    from tasks.errors import RunError

    if busy := [run.name for run in list_runs(ctx.obj) if run.is_in_progress()]:
        raise RunError(f"run {busy[0]} is in progress and needs the server; wait for it, or stop it first")
    if is_served(ctx.obj):
        raise RunError(f"{ctx.obj} is served, which needs the server; stop rounds serve first")
    print("stopped" if servers.stop_server(ctx.obj) else "no server was running")


@commands.command()
def schedule(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            help="A preset's name or a YAML file; without one, list schedules.",
            autocompletion=configurations,
        ),
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="EXPR", help="When, as cron takes it: '0 2 * * *' is two at night.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="N", help="The schedule's and its run's name; default: the configuration's.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="TZ", help="Whose clock; default: this machine's time zone.")
    ] = None,
    set_: Overrides = None,
    remove: Annotated[str | None, typer.Option(metavar="N", help="Remove this schedule; its run stays.")] = None,
    as_json: Json = False,
) -> None:
    """Have a run go on by itself: each time with a round for the data that arrived. `rounds serve` executes it."""
    from dataclasses import asdict

    from tasks import environment
    from tasks.errors import ConfigError

    environment.quieten(hub=True)
    from flows.schedules.schedules import is_served, make_schedule, remove_schedule

    if remove is not None:
        remove_schedule(ctx.obj, remove)
        print(f"removed the schedule {remove}; its run, if there is one, stays")
        return
    if config is None:
        show_schedules(ctx.obj, as_json)
        return
    if cron is None:
        raise ConfigError("--cron: missing; say when, for example --cron '0 2 * * *' for two at night")
    from flows.config import load_config
    from flows.schedules import growing_patterns

    loaded = load_config(config, set_ or [])
    environment.quieten(hub=loaded.needs_hub())
    made = make_schedule(ctx.obj, Path(config).stem if name is None else name, loaded, cron=cron, timezone=timezone)
    if as_json:
        print_json(asdict(made))
    else:
        print(f"{made.name}: {made.cron} ({made.timezone}), next at {made.next_time()}")
    if not growing_patterns(loaded.data):
        say("note: no data is named by a pattern such as preferences/*.jsonl, so none can arrive after the first run")
    if not is_served(ctx.obj):
        say("note: nothing serves this home now; start rounds serve")


def show_schedules(home: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from flows.schedules.schedules import is_served
    from flows.schedules.standing import standings
    from flows.terminal.tables import Column, Table
    from flows.text import printable

    found = standings(home)
    if as_json:
        print_json({"is_served": is_served(home), "schedules": [asdict(item) for item in found]})
        return
    if not found:
        print(f"{home} has no schedules yet; make one with: rounds schedule CONFIG --cron '0 2 * * *'")
        return
    titles = ("schedule", "cron", "time zone", "next", "run", "would do now")
    drops = {"time zone": 2, "run": 1}
    table = Table(columns=[Column(title=t, drop=drops.get(t, 0), wraps=t == "would do now") for t in titles])
    for item in found:
        table.add_row(item.name, item.cron, item.timezone, item.next_time, item.run_state, printable(item.would))
    show(table)


@commands.command()
def serve(ctx: typer.Context) -> None:
    """Execute this home's schedules, and what is started on Prefect's pages, until Ctrl-C."""
    from tasks import environment

    environment.quieten(hub=True)
    environment.serve_from(ctx.obj)
    from flows.schedules.schedules import list_schedules, served_alone
    from flows.server import embedded as servers
    from tasks.errors import RunError, TransientError

    if not list_schedules(ctx.obj):
        raise RunError(f"{ctx.obj} has no schedules; make one with: rounds schedule CONFIG --cron '0 2 * * *'")
    if (named := environment.prefect_api_url()) is not None and not servers.is_healthy(named):
        raise TransientError(
            f"PREFECT_API_URL={named} does not answer; start that server, or unset it to use the home's"
        )
    with served_alone(ctx.obj):
        url = servers.ensure_prefect(ctx.obj)
        # Prefect reads where its server is when it is imported.
        from flows.schedules.deployments import serve as serve_schedules

        # Each flow run enters its schedule's directory. Until then no settings of another Prefect are to be found here.
        os.chdir(servers.directory_of(ctx.obj))

        with servers.kept_alive(ctx.obj, url):
            print(f"Prefect: {url.removesuffix('/api')}/deployments", flush=True)
            serve_schedules(ctx.obj, lambda line: print(line, flush=True))


@commands.command()
def mlflow(
    ctx: typer.Context,
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="0 takes a free one.")] = 5000,
) -> None:
    """Serve MLflow's pages of this home until Ctrl-C: on this machine alone, with one worker and without its job runner."""
    from flows.server import listening
    from tasks import environment
    from tasks.errors import ConfigError

    if environment.mlflow_tracking_uri() is not None:
        from tasks.tracking.addresses import server_page

        # The address of a database holds its password.
        where = server_page(ctx.obj) or "a database"
        raise ConfigError(f"MLFLOW_TRACKING_URI names {where}: runs are logged there; open its pages, or unset it")
    # Taken and let go of again, so that a port in use is one sentence and not the server's traceback.
    with listening("127.0.0.1", port) as free:
        port = free.getsockname()[1]
    from tasks.tracking.server import mlflow_server

    say("MLflow is starting; Ctrl-C ends it")
    with suppress(KeyboardInterrupt), ended_as_by_ctrl_c(), mlflow_server(ctx.obj, port) as server:
        print(f"http://127.0.0.1:{port}", flush=True)
        server.wait()
        say(f"MLflow's server ended by itself; its log is {ctx.obj / 'mlflow' / 'server.log'}")
        raise typer.Exit(FAILED)


@commands.command()
def doctor(
    ctx: typer.Context,
    hub: Annotated[bool, typer.Option("--hub", help="Ask the model hub too; nothing is told to it.")] = False,
    as_json: Json = False,
) -> None:
    """Whether versions, machine, home, network and servers are fit for runs, and what to do where not; then ends with 1."""
    from flows.doctor import PROBLEM, examine

    findings = examine(ctx.obj, asks_hub=hub)
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        from flows.terminal.views.doctor import doctor_table

        show(doctor_table(findings))
    if any(finding.state == PROBLEM for finding in findings):
        raise typer.Exit(FAILED)
