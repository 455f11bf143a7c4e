"""Commands that look at runs: list, status, show, replay."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import FAILED, AttemptId, Json, RunName, print_json, show, show_lines

if TYPE_CHECKING:
    from pathlib import Path

    from flows.plan import Plan
    from flows.runs import Run

commands = typer.Typer()
WATCH_S = 2.0
"""Between two looks at a run that goes on."""


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
        from flows.terminal.views import runs_table

        show(runs_table(overviews))
    else:
        print(f"{ctx.obj} has no runs yet; start one with: rounds run quickstart")


@commands.command()
def status(
    ctx: typer.Context,
    run: RunName = None,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="List what earlier configurations made in the same places.")
    ] = False,
    iterations: Annotated[
        bool, typer.Option("--iterations", help="All iterations of long rounds; else the first and the last.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew until the run ends or Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """A run's rounds and stages: state, rows, time and headline metrics."""
    if watch and not as_json:
        watch_status(ctx.obj, run, whole=iterations)
        return
    from flows.outcomes import reports_of, result_columns, run_state, run_warnings, stage_statuses, summary_of
    from flows.plan import plan_of
    from flows.runs import find_run

    found = find_run(ctx.obj, run)
    config = found.config
    plan = plan_of(found)
    if attempts:
        show_attempts(found, plan, as_json=as_json)
        return
    statuses, state = stage_statuses(plan), run_state(found, plan)
    results = [summary_of(report) for report in reports_of(plan)]
    warnings = run_warnings(statuses)
    if as_json:
        print_json(
            {
                "run": found.name,
                "directory": str(found.root),
                "state": state,
                "stages": [item.as_dict() for item in statuses],
                "rounds": results,
                "warnings": [warning.as_dict() for warning in warnings],
            }
        )
        return
    from flows.terminal.views import results_table, status_view, warning_lines

    print(f"{found.name}: {state} ({found.root})\n")
    show(status_view(statuses, whole=iterations))
    if results:
        print()
        show(results_table(result_columns(config), results))
    show_lines(warning_lines([warning.sentence for warning in warnings]))


def watch_status(home: "Path", name: str | None, *, whole: bool) -> None:
    """The state of a run, shown anew until nobody works on it."""
    import time

    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from flows.outcomes import run_state, stage_statuses
    from flows.plan import plan_of
    from flows.runs import find_run
    from flows.terminal.tables import fit
    from flows.terminal.views import status_view

    found, console = find_run(home, name), Console()

    def view() -> Group:
        plan = plan_of(found)
        tables = status_view(stage_statuses(plan), whole=whole)
        for part in tables.renderables:
            if hasattr(part, "drops"):
                fit(part, console)  # type: ignore[arg-type]
        return Group(Text(f"{found.name}: {run_state(found, plan)} ({time.strftime('%H:%M:%S')})\n"), tables)

    with Live(view(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while found.is_in_progress():
            time.sleep(WATCH_S)
            live.update(view(), refresh=True)


def show_attempts(run: "Run", plan: "Plan", *, as_json: bool) -> None:
    """What the places have that hold more than one output."""
    from dataclasses import asdict

    from flows.plan import attempts_of

    found = attempts_of(run, plan)
    if as_json:
        print_json({"run": run.name, "attempts": [asdict(attempt) for attempt in found]})
    elif found:
        from flows.terminal.views import attempts_table

        show(attempts_table(found))
        print(
            f"rounds rollouts {run.name} --attempt ID shows the rollouts of one; rounds clean removes what is not current"
        )
    else:
        print(f"{run.name}: every place has one attempt")


@commands.command("show")
def show_(
    ctx: typer.Context,
    rollout_id: Annotated[str, typer.Argument(metavar="ROLLOUT_ID", help="As rounds rollouts lists it.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run's name or directory; default: the latest.")
    ] = None,
    attempt: AttemptId = None,
    as_json: Json = False,
) -> None:
    """One rollout, token by token: logprob, reference logprob, KL, reward, value, advantage, return."""
    from flows.query import one_rollout
    from flows.runs import find_run

    found = one_rollout(find_run(ctx.obj, run), rollout_id, attempt)
    if as_json:
        print_json({**found.row, "tokens": found.tokens})
    else:
        from flows.terminal.rollout_views import rollout_view

        show(rollout_view(found))


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
        from flows.terminal.rollout_views import replay_view

        show(replay_view(replayed))
    if any(stage.differences for stage in replayed):
        raise typer.Exit(FAILED)
