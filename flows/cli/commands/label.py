"""``rounds label``: people rank responses, and rounds go on with what they said."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.completion import quiet
from flows.cli.options import Json, RunName, print_json, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.labels import Queue
    from flows.labels.make import Wish
    from flows.runs import Run

commands = typer.Typer()
label = typer.Typer(help="Ask people to rank responses, and make preferences of their answers.", no_args_is_help=True)
commands.add_typer(label, name="label")


@quiet
def queue_names(ctx: typer.Context) -> "Iterator[str]":
    from tasks import environment

    home = environment.home_directory(ctx.find_root().params.get("home"))
    yield from sorted(path.parent.name for path in (home / "labels").glob("[!.]*/queue.json"))


QueueName = Annotated[
    str | None,
    typer.Argument(metavar="QUEUE", help="A queue's name; default: the newest.", autocompletion=queue_names),
]
NamedQueue = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue's name.", autocompletion=queue_names)]


@label.command()
def make(
    ctx: typer.Context,
    run: RunName = None,
    name: Annotated[str | None, typer.Option(metavar="N", help="The queue's name; default: RUN-1, RUN-2 …")] = None,
    prompts: Annotated[int, typer.Option(metavar="N", help="How many prompts people are asked about.")] = 100,
    candidates: Annotated[int, typer.Option(metavar="K", help="Responses to each, 2 to 9.")] = 4,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="WAY",
            help="uncertainty (the default: the score nearest to a tie), disagreement (score and held-out rewards differ "
            "most), gap (the score highest above them), random.",
        ),
    ] = None,
    annotators: Annotated[int, typer.Option(metavar="N", help="How many people answer each task.")] = 1,
    round: Annotated[
        str | None, typer.Option(metavar="R", help="A number, a range, or all; default: the last.")
    ] = None,
    iteration: Annotated[str, typer.Option(metavar="I", help="A number, a range, or all.")] = "all",
    guidelines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Markdown file that says what is a good response.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Draws prompts and orders.")] = 0,
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Sample new responses from the policy of that place; default: the latest."),
    ] = False,
) -> None:
    """Make a queue of a run's rollouts: nothing is generated, unless it is asked for. A tenth of the prompts is drawn at
    random, and one in twenty is asked twice."""
    from flows.cli.app import say
    from flows.labels import WAYS
    from flows.labels.make import Wish, make_from_run
    from flows.query import span
    from flows.runs import find_run
    from tasks.errors import ConfigError

    asked = by or ("random" if generate else WAYS[0])
    way = next((own for own in WAYS if own == asked), None)
    if way is None:
        raise ConfigError(f"--by {by}: not one of {', '.join(WAYS)}")
    wish = Wish(
        prompts=prompts,
        candidates=candidates,
        by=way,
        annotators=annotators,
        seed=seed,
        rounds=span(round, option="--round"),
        iterations=span(iteration, option="--iteration"),
    )
    found = find_run(ctx.obj, run)
    if generate:
        wish = generated(found, wish)
    queue, fewer = make_from_run(found, wish, name=name, guidelines=guidelines)
    if fewer:
        say(fewer)
    print(
        f"queue {queue.name} with {len(queue.tasks)} tasks; give people their links: rounds label invite {queue.name} NAME"
    )


def generated(run: "Run", wish: "Wish") -> "Wish":
    """The same of responses that are sampled now."""
    from dataclasses import replace

    from tasks import environment

    environment.quieten(hub=run.config.needs_hub())
    from flows.orchestration.candidates import generate_candidates
    from flows.query import Span
    from flows.terminal.display import display_for
    from tasks.errors import ConfigError

    for option, own in (("--round", wish.rounds), ("--iteration", wish.iterations)):
        if own.first != own.last and own.last is not None:
            raise ConfigError(
                f"{option} {own.first}-{own.last}: --generate samples from one checkpoint; name one number"
            )
    with display_for(1) as display:
        place = generate_candidates(
            run,
            prompts=wish.prompts,
            samples_per_prompt=wish.candidates,
            round=wish.rounds.last,
            iteration=wish.iterations.last,
            observer=display,
        )
    at = Span(place.round, place.round), Span(place.iteration, place.iteration)
    return replace(wish, data="candidates", rounds=at[0], iterations=at[1])


@label.command()
def invite(
    ctx: typer.Context,
    queue: NamedQueue,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Who answers; each gets a link of their own.")],
) -> None:
    """Print a link for each person; the same one when it is asked for again. Whoever has it answers in their name."""
    from flows.addresses import base_address, page_path, served_at
    from flows.cli.app import say
    from flows.labels import find_queue

    found = find_queue(ctx.obj, queue)
    tokens = found.invite(names)
    for name, token in tokens.items():
        print(f"{name}  {base_address(ctx.obj)}{page_path('label', found.name, token=token)}")
    if served_at(ctx.obj) is None:
        say("the links work while rounds ui serves this home; with --host ADDRESS for people at other machines")


@label.command()
def status(ctx: typer.Context, queue: QueueName = None, as_json: Json = False) -> None:
    """How far people are, and how far they agree: with each other, with themselves, with the score."""
    from flows.labels import find_queue, quality_of
    from flows.terminal.views.labels import annotators_table, queue_sentence

    found = quality_of(find_queue(ctx.obj, queue))
    if as_json:
        print_json(without_tokens(found))
        return
    print(queue_sentence(found))
    if found["annotators"]:
        show(annotators_table(found["annotators"]))


def without_tokens(found: dict[str, Any]) -> dict[str, Any]:
    """What may be sent to somebody; ``rounds label invite`` tells links."""
    people = [{name: value for name, value in person.items() if name != "link"} for person in found["annotators"]]
    return {**found, "annotators": people}


@label.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """All queues, the newest first."""
    from flows.labels import queues, summary_of
    from flows.terminal.views.labels import queues_table

    found = [summary_of(queue) for queue in queues(ctx.obj)]
    if as_json:
        print_json(found)
    elif found:
        show(queues_table(found))
    else:
        print("no queues yet; make one with: rounds label make")


@label.command()
def close(
    ctx: typer.Context,
    queue: NamedQueue,
    into: Annotated[Path, typer.Option("--into", metavar="FILE.jsonl", help="The preferences to write; a new file.")],
) -> None:
    """Write the rankings of all people together as preferences, and take no more answers into them."""
    import shlex

    from flows.labels import close as close_queue
    from flows.labels import find_queue

    found = find_queue(ctx.obj, queue)
    told = close_queue(found, into)
    command = shlex.join(["rounds", "add-round", str(found.settings["run"]), "--preferences", str(into)])
    print(f"wrote {told['preferences']} preferences to {into}; train on them with: {command}")


@label.command()
def export(
    ctx: typer.Context,
    queue: NamedQueue,
    to: Annotated[Path, typer.Option("--to", metavar="FILE.json", help="A new file.")],
    format_: Annotated[str, typer.Option("--format", metavar="FORMAT", help="label-studio or argilla.")],
) -> None:
    """Write tasks and answers as another tool reads them."""
    from flows.labels.exchange import write_file

    found = find(ctx, queue)
    number = write_file(found, to, format_)
    print(f"wrote {number} tasks to {to}")


@label.command("import")
def import_(
    ctx: typer.Context,
    queue: NamedQueue,
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="What label-studio or argilla exported.")],
) -> None:
    """Add answers that were given in Label Studio or Argilla to tasks exported from here."""
    from flows.labels.exchange import read_file

    found = find(ctx, queue)
    new, known = read_file(found, file)
    print(f"added {new} answers" + (f"; {known} were there already" if known else ""))


def find(ctx: typer.Context, name: str) -> "Queue":
    from flows.labels import find_queue

    return find_queue(ctx.obj, name)
