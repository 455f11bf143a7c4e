"""Commands for one part of the chain alone: sample, score, evaluate."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import say
from flows.cli.completion import runs
from flows.cli.options import Json, RunName, print_json, show

if TYPE_CHECKING:
    from flows.runs import Run

commands = typer.Typer()
OfRun = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN", help="A run's name or directory; default: the latest.", autocompletion=runs),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--plain",
        help="Whether a prompt given here is a user's message or a text as it is; default: as those of the run.",
        show_default=False,
    ),
]
Round = Annotated[int | None, typer.Option(metavar="R", min=0, help="As it was after this round; default: the last.")]


@commands.command()
def sample(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to respond to.")] = None,
    run: OfRun = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="Any other model instead: a directory, or a name on the hub.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts of a file, in any form that a run reads.")
    ] = None,
    chat: Chat = None,
    round: Annotated[
        int | None, typer.Option(metavar="R", min=0, help="The run's policy after this round; 0: the reference.")
    ] = None,
    iteration: Annotated[
        int | None, typer.Option(metavar="I", min=1, help="After this iteration of the round.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Responses to each prompt.")] = 1,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="T", min=1, help="Longest response; default: the run's, else 128.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Default: the run's, else 1.")] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="The same seed draws the same responses.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines, which rounds score reads.")] = False,
) -> None:
    """Sample responses from a run's policy, or from any other model, as a run samples."""
    from tasks.errors import ConfigError

    if (prompts is None) == (not prompt):
        raise ConfigError("PROMPT: give prompts, or the file that holds them by --prompts, and not both")
    own = own_run(ctx.obj, run, model, {"--round": round, "--iteration": iteration})
    from flows.alone import asked_of, named_model, policy_of, prompts_in, sampled, written_prompts
    from flows.text import json_text
    from tasks.paths import user_path

    asked = asked_of(own, samples=samples, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature)
    given = (
        prompts_in(user_path(prompts, field="--prompts"))
        if prompts is not None
        else written_prompts(prompt or [], run=own, chat=chat)
    )
    if own is None:
        assert model is not None
        chosen = named_model(model, ctx.obj)
    else:
        chosen = policy_of(own, round=round, iteration=iteration)
    rows = sampled(chosen, own, given, asked, tell)
    if as_json:
        for row in rows:
            print(json_text(row))
    else:
        from flows.terminal.views.alone import sample_view

        show(sample_view(rows, chosen.called, seed=seed))


@commands.command()
def score(
    ctx: typer.Context,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Rows of prompt and response, as rounds sample --json prints.")
    ] = None,
    run: OfRun = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="Any other reward model instead: a directory, or a name on the hub.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="One prompt instead of a file.")] = None,
    response: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A response to it; repeatable.")] = None,
    chat: Chat = None,
    round: Annotated[int | None, typer.Option(metavar="R", min=1, help="The reward model of this round.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines.")] = False,
) -> None:
    """Score texts by a run's rewards, those held out too, or by any other reward model."""
    from tasks.errors import ConfigError

    if (file is None) == (prompt is None):
        raise ConfigError("FILE: give a file of prompts and responses, or --prompt with --response, and not both")
    if (prompt is None) != (not response):
        raise ConfigError("--prompt: goes with --response, for one prompt and each of its responses; give both")
    own = own_run(ctx.obj, run, model, {"--round": round})
    from flows.alone import named_model, scored_by_model, scored_by_run, texts_in, written_texts
    from flows.text import json_text
    from tasks.paths import user_path

    rows = (
        texts_in(user_path(file, field="FILE"))
        if file is not None
        else written_texts(prompt or "", response or [], run=own, chat=chat)
    )
    if own is None:
        assert model is not None
        found = scored_by_model(named_model(model, ctx.obj), rows, tell)
    else:
        found = scored_by_run(own, rows, tell, round=round)
    if as_json:
        for row in found.rows():
            print(json_text(row))
    else:
        from flows.terminal.views.alone import scores_table

        show(scores_table(found))


@commands.command()
def evaluate(
    ctx: typer.Context,
    run: RunName = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="Another model in the policy's place: a directory, or a name on the hub."),
    ] = None,
    round: Annotated[
        int | None, typer.Option(metavar="R", min=1, help="The policy after this round; default: the last.")
    ] = None,
    iteration: Annotated[
        int | None, typer.Option(metavar="I", min=1, help="After this iteration of the round.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold a run's policy, or another model, against its reference: on held-out prompts, by all its rewards."""
    quieten_for(model)
    from flows.alone import evaluated, named_model
    from flows.runs import find_run

    own = find_run(ctx.obj, run)
    other = None if model is None else named_model(model, own.home)
    found = evaluated(own, tell, round=round, iteration=iteration, model=other)
    if as_json:
        print_json({"run": own.name, **found.as_dict()})
    else:
        from flows.terminal.views.alone import evaluation_view

        show(evaluation_view(found))


def own_run(home: Path, run: str | None, model: str | None, of_a_run: Mapping[str, Any]) -> "Run | None":
    """The run that is meant; None where a model is named instead, with which options ``of_a_run`` do not go."""
    quieten_for(model)
    from flows.runs import find_run
    from tasks.errors import ConfigError

    if model is None:
        return find_run(home, run)
    given = {"--run": run, **of_a_run}
    if (option := next((name for name, value in given.items() if value is not None), None)) is not None:
        raise ConfigError(f"{option} {given[option]}: --model {model} is no run's; leave one of the two out")
    return None


def quieten_for(model: str | None) -> None:
    """Set the switches of libraries before they are imported; the hub is asked only for a model that is not here."""
    from tasks import environment
    from tasks.config import needs_hub
    from tasks.paths import user_path

    environment.quieten(hub=model is not None and needs_hub(str(user_path(model, field="--model"))))


def tell(event: Mapping[str, Any]) -> None:
    """What the stage warns of."""
    if "warning" in event:
        say(f"note: {event['warning']}")
