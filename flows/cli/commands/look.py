"""Commands that look at runs: list, status, logs, replay."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import FAILED, WARNING, Json, RunName, print_json, show, show_lines

if TYPE_CHECKING:
    from flows.plan import Plan
    from flows.query import Span
    from flows.runs import Run

commands = typer.Typer()


@commands.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """All runs, the one worked on last first."""
    from dataclasses import asdict

    from flows.outcomes import overview
    from flows.runs import list_runs

    overviews = [overview(run) for run in list_runs(ctx.obj)]
    if as_json:
        print_json([asdict(item) for item in overviews])
    elif overviews:
        from flows.terminal.views.runs import runs_table

        show(runs_table(overviews))
    else:
        print(f"{ctx.obj} has no runs yet; start one with: rounds run quickstart")


@commands.command()
def status(
    ctx: typer.Context,
    run: RunName = None,
    round: Annotated[str | None, typer.Option(metavar="R", help="Only a round, or 2-4.")] = None,
    iterations: Annotated[
        bool, typer.Option("--iterations", help="List each iteration, also where there are more than 50.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until the run ends.")] = False,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="List what earlier configurations made in the same places.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A run's rounds and stages: state, rows, time and headline metrics."""
    from flows.plan import plan_of
    from flows.query import span
    from flows.runs import find_run
    from tasks.errors import ConfigError

    found = find_run(ctx.obj, run)
    if attempts:
        show_attempts(found, plan_of(found), as_json=as_json)
        return
    if watch and as_json:
        raise ConfigError("--watch: shows pictures of a run, not JSON; leave one of the two out")
    rounds = span(round, option="--round")
    if watch:
        from flows.terminal.watch import watch as watch_run

        watch_run(found, rounds)
    show_status(found, rounds, whole=iterations, as_json=as_json)


def show_status(run: "Run", rounds: "Span", *, whole: bool, as_json: bool) -> None:
    """How far a run is, what it came to, and what speaks against that."""
    from flows.outcomes import result_columns, standing_of

    found = standing_of(run)
    statuses = found.stages_of(rounds)
    if as_json:
        print_json(
            {
                "run": run.name,
                "directory": str(run.root),
                "state": found.state,
                "stages": [item.as_dict() for item in statuses],
                "rounds": found.results,
                "warnings": [warning.as_dict() for warning in found.warnings],
            }
        )
        return
    from flows.terminal.views.runs import results_table, state_line, warning_lines
    from flows.terminal.views.status import status_view

    show(state_line(run, found.state), is_line=True)
    print()
    show(status_view(statuses, whole=whole))
    if found.results:
        print()
        show(results_table(result_columns(run.config), found.results))
    show_lines(warning_lines([warning.sentence for warning in found.warnings]), style=WARNING)


def show_attempts(run: "Run", plan: "Plan", *, as_json: bool) -> None:
    """What the places have that hold more than one output."""
    from dataclasses import asdict

    from flows.plan import attempts_of

    found = attempts_of(run, plan)
    if as_json:
        print_json({"run": run.name, "attempts": [asdict(attempt) for attempt in found]})
    elif found:
        from flows.terminal.views.runs import attempts_table

        show(attempts_table(found))
        print(
            f"rounds rollouts {run.name} --attempt ID shows the rollouts of one; rounds clean removes what is not current"
        )
    else:
        print(f"{run.name}: every place has one attempt")


@commands.command()
def logs(
    ctx: typer.Context,
    run: RunName = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, until the run ends.")
    ] = False,
    lines: Annotated[int, typer.Option(metavar="N", min=1, help="So many of the last lines of each file.")] = 200,
    as_json: Json = False,
) -> None:
    """What a run has committed, with the time, and what its worker and the Prefect server of its home wrote."""
    from flows.runs import find_run
    from flows.terminal.logs import followed, last_lines, log_files, shown_logs, stage_lines
    from tasks.errors import ConfigError

    found = find_run(ctx.obj, run)
    if as_json:
        if follow:
            raise ConfigError("--follow: JSON has an end; leave one of the two out")
        files = [{"file": str(file), "lines": last_lines(file, lines)} for file in log_files(found)]
        print_json({"run": found.name, "stages": stage_lines(found, lines, set()), "logs": files})
        return
    for line in followed(found, lines) if follow else shown_logs(found, lines):
        print(line, flush=follow)


@commands.command()
def replay(
    ctx: typer.Context,
    run: RunName = None,
    round: Annotated[int | None, typer.Option(metavar="R", help="Default: the latest.")] = None,
    iteration: Annotated[int | None, typer.Option(metavar="I", help="Default: the latest.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps; default: the run's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute scores, advantages and update again from what is stored, and say where they first differ."""
    from dataclasses import asdict

    from tasks import environment

    environment.quieten(hub=False)
    from flows.outcomes.replay import replay_iteration
    from flows.runs import find_run

    found = find_run(ctx.obj, run)
    with found.locked():
        replayed = replay_iteration(found, round=round, iteration=iteration, device=device, report=lambda *_: None)
    if as_json:
        print_json({"run": found.name, "stages": [asdict(stage) for stage in replayed]})
    else:
        from flows.terminal.views.rollouts import replay_view

        show(replay_view(replayed))
    if any(stage.differences for stage in replayed):
        raise typer.Exit(FAILED)
