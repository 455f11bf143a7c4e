"""``rounds``: the command line.

Only typer is imported here; everything else is imported where a command needs it, so that ``rounds --help`` is quick.
Exit codes: 0 done, 1 a stage failed, 2 the user's mistake, 3 finished but not everything could be reported, 130 cancelled.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from flows.config import RunConfig
    from flows.launch import Outcome
    from flows.plan import Plan, Planned
    from flows.workspace import Run
    from tasks.retry import StageError

FAILED, MISTAKE, UNREPORTED, CANCELLED = 1, 2, 3, 130


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


class What(StrEnum):
    policy = "policy"
    critic = "critic"
    reward_model = "reward_model"


class Commands(TyperGroup):
    """Turns our errors into one sentence and an exit code, and takes ``--home`` behind a command too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return list(super().parse_args(ctx, home_first(args)))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            say("cancelled")
            raise typer.Exit(CANCELLED) from interrupt
        except Exception as error:
            code, sentence = explain(error)
            if code is None:
                raise
            say(sentence)
            raise typer.Exit(code) from error


def home_first(args: Sequence[str]) -> list[str]:
    """The arguments with ``--home DIR`` in front, wherever it was written."""
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(args)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == "--home":
            if (value := next(remaining, None)) is None:
                # Alone, so that no command is taken for the directory.
                return [*front, argument]
            front += [argument, value]
        elif argument.startswith("--home="):
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest


def explain(error: Exception) -> tuple[int | None, str]:
    """The exit code of an error and a sentence about it; no code for a defect, whose traceback is wanted."""
    from ppo_core.errors import NonFiniteError
    from tasks.errors import DamagedError, TransientError, UnhealthyError, UserError
    from tasks.paths import os_error_sentence
    from tasks.retry import StageError

    if isinstance(error, UserError):
        return MISTAKE, f"error: {error}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        # A file or disk that is not as it has to be; what a stage meets of it comes as a StageError.
        return MISTAKE, f"error: {os_error_sentence(error)}"
    if isinstance(error, TransientError | DamagedError | UnhealthyError | NonFiniteError):
        return FAILED, f"error: {error}"
    if isinstance(error, StageError):
        return explain_stage(error)
    return None, ""


def explain_stage(error: "StageError") -> tuple[int, str]:
    """What a failed stage means for whoever started the run."""
    if error.kind == "cancelled":
        return CANCELLED, "cancelled; nothing that was committed is lost, and the same command continues"
    where = f" in {error.stage}" if error.stage else ""
    if error.kind == "user":
        return MISTAKE, f"error{where}: {error.message}"
    log = f"; details are in {error.log}" if error.log and error.log not in error.message else ""
    return FAILED, f"error{where}: {error.message}{log}; when it is mended, the same command continues"


def say(sentence: str) -> None:
    """One line on standard error; it may quote what a model or a file says."""
    from flows.text import printable

    print(printable(sentence), file=sys.stderr, flush=True)


app = typer.Typer(
    cls=Commands,
    name="rounds",
    help="PPO-RLHF in rounds: run them, look at rollouts, rerun any stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AttemptId = Annotated[
    str | None, typer.Option(metavar="ID", help="An earlier attempt, as rounds status --attempts lists it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a field; repeatable.")
]
RunName = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name or directory; default: the latest.")]


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"rounds {version('rlhf-rounds')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    home: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where runs live; default: $ROUNDS_HOME, else .rounds here.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    from tasks import settings

    ctx.obj = settings.home_directory(home)


@app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")] = "rounds.yaml",
) -> None:
    """Write a commented configuration to start from."""
    from flows.config import PRESETS
    from flows.text import printable
    from tasks.errors import ConfigError
    from tasks.paths import shown, user_path

    path = user_path(file, field="FILE")
    try:
        with path.open("x") as stream:
            stream.write((PRESETS / "template.yaml").read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigError(f"{shown(path)} exists already; name another file, or remove it") from error
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be written ({error.strerror}); name another file") from error
    command = shlex.join(["rounds", "run", str(path)])
    print(printable(f"wrote {path}; name your data and model in it, then: {command}"))


@app.command()
def run(
    ctx: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.")],
    name: Annotated[str | None, typer.Option(metavar="N", help="The run's name; default: the configuration's.")] = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Run all rounds with live progress. The same command continues a run that was stopped."""
    from tasks import settings

    settings.quieten(hub=True)
    from flows.config import load_config

    loaded = load_config(config, set_ or [])
    settings.quieten(hub=loaded.needs_hub())
    from flows.launch import prepared, start
    from flows.workspace import named_run

    chosen = named_run(ctx.obj, Path(config).stem if name is None else name)
    plan = prepared(chosen, loaded)
    finish(start(chosen, loaded, plan), loaded, as_json=as_json)


def finish(outcome: "Outcome", config: "RunConfig", *, as_json: bool) -> None:
    """Print what the run came to, and end with the code that says whether all of it was reported."""
    from flows.results import result_columns, summary_of, warnings_of
    from flows.views import next_steps, results_table, warning_lines

    run = outcome.run
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
            }
        )
    else:
        show(results_table(result_columns(config), results))
        show_lines(warning_lines([sentence for summary in results for sentence in warnings_of(summary)]))
        print("\n".join(next_steps(run)))
    for sentence in outcome.unreported:
        say(f"not reported: {sentence}")
    if outcome.lost_server:
        say("not reported: the Prefect server went away, so its pages lack the end of this run")
        sys.stdout.flush()
        # At a normal exit Prefect's client would go on trying for minutes; all that counts is committed.
        os._exit(UNREPORTED)
    if outcome.unreported:
        raise typer.Exit(UNREPORTED)


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """All runs, the one worked on last first."""
    from dataclasses import asdict

    from flows.results import overview
    from flows.workspace import list_runs

    overviews = [overview(run) for run in list_runs(ctx.obj)]
    if as_json:
        print_json([asdict(item) for item in overviews])
    elif overviews:
        from flows.views import runs_table

        show(runs_table(overviews))
    else:
        print(f"{ctx.obj} has no runs yet; start one with: rounds run quickstart")


@app.command()
def status(
    ctx: typer.Context,
    run: RunName = None,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="List what earlier configurations made in the same places.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A run's rounds and stages: state, rows, time and headline metrics."""
    from flows.plan import plan_of
    from flows.results import reports_of, result_columns, run_state, run_warnings, stage_statuses, summary_of
    from flows.workspace import find_run

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
    from flows.views import results_table, status_view, warning_lines

    print(f"{found.name}: {state} ({found.root})\n")
    show(status_view(statuses))
    if results:
        print()
        show(results_table(result_columns(config), results))
    show_lines(warning_lines([warning.sentence for warning in warnings]))


def show_attempts(run: "Run", plan: "Plan", *, as_json: bool) -> None:
    """What the places have that hold more than one output."""
    from dataclasses import asdict

    from flows.attempts import attempts_of

    found = attempts_of(run, plan)
    if as_json:
        print_json({"run": run.name, "attempts": [asdict(attempt) for attempt in found]})
    elif found:
        from flows.views import attempts_table

        show(attempts_table(found))
        print(
            f"rounds rollouts {run.name} --attempt ID shows the rollouts of one; rounds clean removes what is not current"
        )
    else:
        print(f"{run.name}: every place has one attempt")


@app.command()
def rerun(
    ctx: typer.Context,
    run: RunName = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Recompute from this stage on, though it is committed."),
    ] = None,
    round: Annotated[int | None, typer.Option(metavar="R", help="Of this round; default: the last.")] = None,
    iteration: Annotated[int | None, typer.Option(metavar="I", help="Of this iteration; default: the first.")] = None,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be executed and reused.")] = False,
    as_json: Json = False,
) -> None:
    """Recompute what a stage or a changed setting reaches, and nothing else; without either, continue the run."""
    from tasks import settings

    settings.quieten(hub=True)
    from flows.config import checked, dump, with_overrides
    from flows.workspace import find_run
    from tasks.errors import ConfigError

    found = find_run(ctx.obj, run)
    config = checked(with_overrides(dump(found.config), set_ or []), where=f"run {found.name}")
    settings.quieten(hub=config.needs_hub())
    from flows.launch import prepared, start
    from flows.plan import forced_by

    if from_ is None and (round is not None or iteration is not None):
        raise ConfigError("--round and --iteration say where --from begins; name the stage with --from too")
    plan = prepared(found, config)
    forced = forced_by(plan, from_, round=round, iteration=iteration) if from_ is not None else []
    if forced and sorted(planned.key for planned in forced) == found.unfinished_rerun:
        # What it has done already is not done again.
        forced = []
    if dry_run:
        show_steps(found, plan, forced, as_json=as_json)
    else:
        finish(start(found, config, plan, force=[p.key for p in forced]), config, as_json=as_json)


def show_steps(run: "Run", plan: "Plan", forced: "list[Planned]", *, as_json: bool) -> None:
    """What a rerun would do; nothing is touched."""
    from dataclasses import asdict

    from flows.results import steps
    from flows.views import steps_table, steps_total

    found = steps(run, plan, forced)
    if as_json:
        expected = sum(step.expected_seconds or 0.0 for step in found if step.executes)
        print_json({"run": run.name, "stages": [asdict(step) for step in found], "expected_seconds": expected})
    else:
        show(steps_table(found))
        print(steps_total(found))


@app.command()
def rollouts(
    ctx: typer.Context,
    run: RunName = None,
    round: Annotated[int | None, typer.Option(metavar="R", help="Default: the latest.")] = None,
    iteration: Annotated[int | None, typer.Option(metavar="I", help="Default: the latest.")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Largest first; -COLUMN puts the smallest first.")
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: 10 in a table, else all.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="A pandas query, such as: score < 0 and length > 20.")
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="jsonl has every column, csv those that are no lists.")
    ] = (Format.table),
    attempt: AttemptId = None,
    as_json: Json = False,
) -> None:
    """Look at the rollouts of one iteration and their rewards."""
    from flows.rollout_rows import full_rows, rollouts_of, selected
    from flows.text import json_text, printable_lines
    from flows.workspace import find_run

    found = rollouts_of(find_run(ctx.obj, run), round, iteration, attempt)
    is_table = format_ is Format.table and not as_json
    everything = found.frame()
    frame = selected(everything, where=where, sort=sort, top=top or (10 if is_table else None))
    if not found.is_current:
        say("note: the run's configuration or code changed since; these rollouts were made before that")
    if as_json:
        rows = full_rows(found, frame)
        print_json({"round": found.round, "iteration": found.iteration, "stage": found.stage, "rollouts": rows})
    elif format_ is Format.jsonl:
        for row in full_rows(found, frame):
            print(json_text(row))
    elif format_ is Format.csv:
        texts = frame.select_dtypes(exclude="number").columns
        print(frame.assign(**{name: frame[name].map(printable_lines) for name in texts}).to_csv(index=False), end="")
    else:
        from flows.views import rollouts_table

        show(rollouts_table(found, frame))
        print(f"round {found.round}, iteration {found.iteration}: {len(frame)} of {len(everything)} rollouts")


@app.command("show")
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
    from flows.rollout_rows import one_rollout
    from flows.workspace import find_run

    found = one_rollout(find_run(ctx.obj, run), rollout_id, attempt)
    if as_json:
        print_json({**found.row, "tokens": found.tokens})
    else:
        from flows.views import rollout_view

        show(rollout_view(found))


@app.command()
def export(
    ctx: typer.Context,
    to: Annotated[str, typer.Option(metavar="DIR", help="A new or empty directory.")],
    run: RunName = None,
    what: Annotated[What, typer.Option(help="Which model.")] = What.policy,
    round: Annotated[
        int | None, typer.Option(metavar="R", help="As it was after this round; default: the last.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the policy, critic or reward model as a Hugging Face directory with a model card."""
    from flows.export import export_model
    from flows.text import printable
    from flows.workspace import find_run
    from tasks.paths import user_path

    found = export_model(find_run(ctx.obj, run), user_path(to, field="--to"), part=what.value, round=round)
    if as_json:
        print_json(found.as_dict())
    else:
        print(printable(f"wrote {found.sentence}"))


@app.command()
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

    from tasks import settings

    settings.quieten(hub=False)
    from flows.replay import replay_iteration
    from flows.workspace import find_run

    found = find_run(ctx.obj, run)
    with found.locked():
        replayed = replay_iteration(found, round=round, iteration=iteration, device=device, report=lambda *_: None)
    if as_json:
        print_json({"run": found.name, "stages": [asdict(stage) for stage in replayed]})
    else:
        from flows.views import replay_view

        show(replay_view(replayed))
    if any(stage.differences for stage in replayed):
        raise typer.Exit(FAILED)


@app.command()
def verify(ctx: typer.Context, run: RunName = None, as_json: Json = False) -> None:
    """Read every committed file of a run and compare it with the digest that it was committed with."""
    from dataclasses import asdict

    from flows.upkeep import verify as verified
    from flows.workspace import find_run

    found = find_run(ctx.obj, run)
    result = verified(found)
    if as_json:
        print_json({"run": found.name, **asdict(result)})
    else:
        for damage in result.damaged:
            print(f"{damage.file} {damage.what}; {damage.remedy}")
        print(f"{found.name}: {result.files} files of {result.outputs} outputs read, {len(result.damaged)} damaged")
    if result.damaged:
        raise typer.Exit(FAILED)


@app.command()
def clean(
    ctx: typer.Context,
    run: RunName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove earlier attempts that a later one has replaced, and what interrupted ones left."""
    from dataclasses import asdict

    from flows.upkeep import clean as cleaned
    from flows.workspace import find_run

    found = find_run(ctx.obj, run)
    with found.locked():
        result = cleaned(found, dry_run=dry_run)
    if as_json:
        print_json({"run": found.name, "dry_run": dry_run, **asdict(result)})
        return
    for directory in result.directories:
        print(directory)
    verb = "would remove" if dry_run else "removed"
    print(f"{found.name}: {verb} {len(result.directories)} directories, {result.bytes / 1e6:,.1f} MB")


@app.command()
def up(ctx: typer.Context) -> None:
    """Start the Prefect server of this home, if it does not run yet, and say how to log in to its pages."""
    from tasks import settings

    settings.quieten(hub=False)
    from flows import servers

    url = servers.ensure_prefect(ctx.obj)
    print(url.removesuffix("/api"))
    if url == servers.running_server(ctx.obj):
        print(f"log in with: {servers.auth_string(ctx.obj)}")


@app.command()
def down(ctx: typer.Context) -> None:
    """Stop the Prefect server of this home."""
    from flows import servers
    from flows.schedules import is_served
    from flows.workspace import list_runs
    from tasks.errors import RunError

    if busy := [run.name for run in list_runs(ctx.obj) if run.is_in_progress()]:
        raise RunError(f"run {busy[0]} is in progress and needs the server; wait for it, or stop it first")
    if is_served(ctx.obj):
        raise RunError(f"{ctx.obj} is served, which needs the server; stop rounds serve first")
    print("stopped" if servers.stop_server(ctx.obj) else "no server was running")


@app.command()
def schedule(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file; without one, list schedules."),
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

    from tasks import settings
    from tasks.errors import ConfigError

    settings.quieten(hub=True)
    from flows.schedules import is_served, list_schedules, make_schedule, remove_schedule

    if remove is not None:
        remove_schedule(ctx.obj, remove)
        print(f"removed the schedule {remove}; its run, if there is one, stays")
        return
    if config is None:
        found = list_schedules(ctx.obj)
        if as_json:
            print_json([asdict(item) for item in found])
        elif found:
            from flows.views import plain_table

            table = plain_table("schedule", "cron", "time zone", "next")
            for item in found:
                table.add_row(item.name, item.cron, item.timezone, item.next_time())
            show(table)
        else:
            print(f"{ctx.obj} has no schedules yet; make one with: rounds schedule CONFIG --cron '0 2 * * *'")
        return
    if cron is None:
        raise ConfigError("--cron: missing; say when, for example --cron '0 2 * * *' for two at night")
    from flows.arrivals import growing_patterns
    from flows.config import load_config

    loaded = load_config(config, set_ or [])
    settings.quieten(hub=loaded.needs_hub())
    made = make_schedule(ctx.obj, Path(config).stem if name is None else name, loaded, cron=cron, timezone=timezone)
    if as_json:
        print_json(asdict(made))
    else:
        print(f"{made.name}: {made.cron} ({made.timezone}), next at {made.next_time()}")
    if not growing_patterns(loaded.data):
        say("note: no data is named by a pattern such as preferences/*.jsonl, so none can arrive after the first run")
    if not is_served(ctx.obj):
        say("note: nothing serves this home now; start rounds serve")


@app.command()
def serve(ctx: typer.Context) -> None:
    """Execute this home's schedules, and what is started on Prefect's pages, until Ctrl-C."""
    from tasks import settings

    settings.quieten(hub=True)
    settings.serve_from(ctx.obj)
    from flows import servers
    from flows.schedules import list_schedules, served_alone
    from tasks.errors import RunError, TransientError

    if not list_schedules(ctx.obj):
        raise RunError(f"{ctx.obj} has no schedules; make one with: rounds schedule CONFIG --cron '0 2 * * *'")
    if (named := settings.prefect_api_url()) is not None and not servers.is_healthy(named):
        raise TransientError(
            f"PREFECT_API_URL={named} does not answer; start that server, or unset it to use the home's"
        )
    with served_alone(ctx.obj):
        url = servers.ensure_prefect(ctx.obj)
        # Prefect reads where its server is when it is imported.
        from flows.deployments import serve as serve_schedules

        # Each flow run enters its schedule's directory. Until then no settings of another Prefect are to be found here.
        os.chdir(servers.directory_of(ctx.obj))

        with servers.kept_alive(ctx.obj, url):
            print(f"Prefect: {url.removesuffix('/api')}/deployments", flush=True)
            serve_schedules(ctx.obj, lambda line: print(line, flush=True))


def show(renderable: Any) -> None:
    """Print a table on standard output; into a pipe as wide as it needs to be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(renderable)


def show_lines(lines: "Sequence[str]") -> None:
    """Print lines as they are, however long."""
    if lines:
        print("\n".join(lines))


def print_json(value: Any) -> None:
    from flows.text import json_text

    print(json_text(value, indent=1))


def main() -> None:
    from flows.text import escape_what_streams_lack

    escape_what_streams_lack(sys.stdout, sys.stderr)
    app()
