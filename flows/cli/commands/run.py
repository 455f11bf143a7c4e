"""Commands that execute stages: init, run, rerun."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import say
from flows.cli.completion import configurations, stages
from flows.cli.options import UNREPORTED, WARNING, Json, Overrides, RunName, print_json, show, show_lines, write_new
from flows.text import printable
from flows.waiting import WAITING

if TYPE_CHECKING:
    from flows.config import RunConfig
    from flows.launch import Outcome
    from flows.plan import Plan, Planned
    from flows.runs import Run

commands = typer.Typer()


@commands.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")] = "rounds.yaml",
) -> None:
    """Write a commented configuration to start from."""
    from flows.config import commented
    from tasks.paths import user_path

    path = user_path(file, field="FILE")
    write_new(path, commented())
    command = shlex.join(["rounds", "run", str(path)])
    print(printable(f"wrote {path}; name your data and model in it, then: {command}"))


@commands.command()
def run(
    ctx: typer.Context,
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.", autocompletion=configurations)
    ],
    name: Annotated[str | None, typer.Option(metavar="N", help="The run's name; default: the configuration's.")] = None,
    set_: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="Stop after the first output of this stage; the same command without it goes on.",
            autocompletion=stages,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run all rounds with live progress. The same command continues a run that was stopped."""
    WAITING.on(f"reading {printable(config)} and what is committed of the run")
    from tasks import environment

    environment.quieten(hub=True)
    from flows.config import load_config

    loaded = load_config(config, set_ or [])
    environment.quieten(hub=loaded.needs_hub())
    from flows.launch import prepared, start
    from flows.plan import require_same_data
    from flows.runs import named_run

    chosen = named_run(ctx.obj, Path(config).stem if name is None else name)
    plan = prepared(chosen, loaded)
    require_same_data(chosen, loaded.data, plan)
    if until is not None:
        plan = plan.until(until)
    finish(start(chosen, loaded, plan), loaded, as_json=as_json)


def finish(outcome: "Outcome", config: "RunConfig", *, as_json: bool) -> None:
    """Print what the run came to, and end with the code that says whether all of it was reported."""
    from flows.outcomes import outputs_asked_for, result_columns, summary_of, warnings_of
    from flows.terminal.views.runs import next_steps, results_table, warning_lines
    from flows.terminal.views.status import beginning_lines

    WAITING.over()
    run = outcome.run
    asked_for = outputs_asked_for(run, outcome.plan)
    results = [summary_of(report) for report in outcome.reports]
    if as_json:
        found = [warning for summary in results for warning in summary.get("warnings", [])]
        print_json(
            {
                "run": run.name,
                "directory": str(run.root),
                "rounds": results,
                "warnings": found,
                "unreported": list(outcome.unreported),
                **({} if asked_for is None else {"until": asked_for.as_dict()}),
            }
        )
    else:
        if results:
            show(results_table(result_columns(config), results))
        show_lines(warning_lines([text for summary in results for text in warnings_of(summary)]), style=WARNING)
        print("\n".join(next_steps(run) if asked_for is None else beginning_lines(run, asked_for)))
    for sentence in outcome.unreported:
        say(f"not reported: {sentence}")
    if outcome.lost_server:
        say("not reported: the Prefect server went away, so its pages lack the end of this run")
        sys.stdout.flush()
        # At a normal exit Prefect's client would go on trying for minutes; all that counts is committed.
        os._exit(UNREPORTED)
    if outcome.unreported:
        raise typer.Exit(UNREPORTED)


@commands.command()
def rerun(
    ctx: typer.Context,
    run: RunName = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="Recompute from this stage on, though it is committed.",
            autocompletion=stages,
        ),
    ] = None,
    round: Annotated[int | None, typer.Option(metavar="R", help="Of this round; default: the last.")] = None,
    iteration: Annotated[int | None, typer.Option(metavar="I", help="Of this iteration; default: the first.")] = None,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be executed and reused.")] = False,
    as_json: Json = False,
) -> None:
    """Recompute what a stage or a changed setting reaches, and nothing else; without either, continue the run."""
    WAITING.on("reading the run and what is committed of it")
    found, config = run_with(ctx.obj, run, set_)
    from flows.launch import prepared, start
    from flows.plan import forced_by, require_same_data
    from tasks.errors import ConfigError

    if from_ is None and (round is not None or iteration is not None):
        raise ConfigError("--round and --iteration say where --from begins; name the stage with --from too")
    plan = prepared(found, config)
    forced = forced_by(plan, from_, round=round, iteration=iteration) if from_ is not None else []
    if forced and sorted(planned.key for planned in forced) == found.unfinished_rerun:
        # What it has done already is not done again.
        forced = []
    require_same_data(found, config.data, plan, forced=[planned.key for planned in forced])
    if dry_run:
        show_steps(found, plan, forced, as_json=as_json)
    else:
        finish(start(found, config, plan, force=[p.key for p in forced]), config, as_json=as_json)


@commands.command()
def add_round(
    ctx: typer.Context,
    run: RunName = None,
    preferences: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="New preferences; repeatable, or a quoted pattern.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="New prompts; repeatable, or a quoted pattern.")
    ] = None,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be executed and reused.")] = False,
    as_json: Json = False,
) -> None:
    """Add one more round, with data that arrived as files of its own; nothing before it is executed again."""
    WAITING.on("reading the files, the run, and what is committed of it")
    found, config = run_with(ctx.obj, run, set_)
    from flows.schedules.by_hand import add_round, planned_round

    files = {"preferences": preferences or [], "prompts": prompts or []}
    if dry_run:
        found.require_idle()
        step, _, plan = planned_round(found, config, files)
        say(step.what)
        show_steps(found, plan, [], as_json=as_json)
    else:
        outcome = add_round(found, config, files, say)
        finish(outcome, outcome.run.config, as_json=as_json)


def run_with(home: Path, run: str | None, overrides: list[str] | None) -> "tuple[Run, RunConfig]":
    """A run, and its configuration with what is overridden; libraries know then whether the hub may be asked."""
    from tasks import environment

    environment.quieten(hub=True)
    from flows.config import checked, dump, with_overrides
    from flows.runs import find_run

    found = find_run(home, run)
    config = checked(with_overrides(dump(found.config), overrides or []), where=f"run {found.name}")
    environment.quieten(hub=config.needs_hub())
    return found, config


def show_steps(run: "Run", plan: "Plan", forced: "list[Planned]", *, as_json: bool) -> None:
    """What a rerun would do; nothing is touched."""
    from dataclasses import asdict

    from flows.outcomes import steps
    from flows.terminal.views.runs import steps_table, steps_total

    found = steps(run, plan, forced)
    WAITING.over()
    if as_json:
        expected = sum(step.expected_seconds or 0.0 for step in found if step.executes)
        print_json({"run": run.name, "stages": [asdict(step) for step in found], "expected_seconds": expected})
    else:
        show(steps_table(found))
        print(steps_total(found))
