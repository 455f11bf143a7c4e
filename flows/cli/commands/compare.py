"""Commands that hold things against each other, or against their declaration: compare, diff, explain."""

from typing import Annotated

import typer

from flows.cli.completion import metrics, runs
from flows.cli.options import Json, print_json, show

commands = typer.Typer()
A_PLACE = "RUN or RUN:ROUND for evaluations, RUN:ROUND.ITERATION for rollouts, or ROUND.ITERATION of the latest run."


@commands.command()
def compare(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help=A_PLACE, autocompletion=runs)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other place.", autocompletion=runs)],
    where: Annotated[str | None, typer.Option(metavar="SEARCH", help="Only rows that a search finds.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="The largest fall of score, length, ... first; -NUMBER: the largest rise."),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="So many prompts are shown.")] = 5,
    as_json: Json = False,
) -> None:
    """What changed between two places, prompt by prompt; first where the score rose while a held-out reward fell."""
    from flows.analysis.compare import compared
    from flows.analysis.joined import DOUBTFUL
    from flows.analysis.sides import side_of
    from flows.runs import find_run

    sides = [side_of(text, lambda name: find_run(ctx.obj, name)) for text in (a, b)]
    found = compared(*sides, search=where or "", order=sort or DOUBTFUL)
    if as_json:
        print_json(found.as_dict(0, top))
    else:
        from flows.terminal.views.compare import comparison_view

        show(comparison_view(found, found.pairs(0, top)))


@commands.command()
def diff(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A run's name or directory.", autocompletion=runs)],
    b: Annotated[
        str | None, typer.Argument(metavar="B", help="The other run; default: the defaults.", autocompletion=runs)
    ] = None,
    as_json: Json = False,
) -> None:
    """What differs in the configuration of two runs, or of one run from the defaults."""
    from flows.analysis.differences import chosen_settings, differing_settings
    from flows.runs import find_run

    run = find_run(ctx.obj, a)
    if b is None:
        names, found = ("default", run.name), chosen_settings(run.config)
    else:
        other = find_run(ctx.obj, b)
        names, found = (run.name, other.name), differing_settings(run.config, other.config)
    if as_json:
        print_json({"a": names[0], "b": names[1], "settings": [setting.as_dict() for setting in found]})
    elif found:
        from flows.terminal.views.compare import settings_table

        show(settings_table(found, names))
    else:
        print(f"{names[0]} and {names[1]} have the same configuration")


@commands.command()
def explain(
    ctx: typer.Context,
    metric: Annotated[
        str, typer.Argument(metavar="METRIC", help="As it is logged, such as kl/mean.", autocompletion=metrics)
    ],
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Show its values in this run too.", autocompletion=runs)
    ] = None,
    as_json: Json = False,
) -> None:
    """What a metric means, where it is healthy, and what to do where it is not."""
    from flows.analysis.explain import explanation_of, figures_of
    from flows.outcomes import standing_of
    from flows.runs import find_run

    found = explanation_of(metric)
    own = None if run is None else find_run(ctx.obj, run)
    figures = [] if own is None else figures_of(metric, standing_of(own).stages)
    if as_json:
        places = ("round", "iteration", "value")
        values = {item.name: [dict(zip(places, value, strict=True)) for value in item.values] for item in figures}
        print_json({**found.as_dict(), **({} if own is None else {"run": own.name, "values": values})})
    else:
        from flows.terminal.views.compare import explanation_view

        show(explanation_view(found, figures, None if own is None else own.name))
