"""Commands before a run: check, new, presets."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import say
from flows.cli.completion import configurations
from flows.cli.completion import presets as preset_names
from flows.cli.options import Json, Overrides, print_json, show, write_new

LEAST_WORDS = 12
"""Cells of the screen below which a column of words is hard to read."""
commands = typer.Typer()


@commands.command()
def check(
    ctx: typer.Context,
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.", autocompletion=configurations)
    ],
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Look at a configuration before hours are spent: all mistakes, data as the model reads it, memory, time, disk, plan."""
    from tasks import environment

    environment.quieten(hub=True)
    from flows.config import read_document, with_overrides
    from flows.preview import examine
    from flows.runs import named_run
    from flows.terminal.views.preview import preview_view
    from tasks.errors import ConfigError, Mistakes

    document = with_overrides(read_document(config), set_ or [])
    preview = examine(document, named_run(ctx.obj, Path(config).stem), say=lambda what: None if as_json else say(what))
    if as_json:
        print_json(preview.as_dict())
    else:
        show(preview_view(preview))
    if len(preview.mistakes) == 1:
        raise ConfigError(f"{config}: {preview.mistakes[0]}")
    if preview.mistakes:
        raise Mistakes(config, preview.mistakes)


@commands.command()
def new(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(metavar="M", help="The model to train: a directory, or a name on a hub.")],
    preferences: Annotated[str, typer.Option(metavar="F", help="A file of preferences, or a pattern.")],
    prompts: Annotated[
        str | None, typer.Option(metavar="F", help="Prompts to sample responses to; default: those of the preferences.")
    ] = None,
    to: Annotated[str, typer.Option(metavar="FILE", help="The file to write.")] = "rounds.yaml",
) -> None:
    """Write a short configuration for a model and preferences, from what both are, each setting with why it is so."""
    from tasks import environment
    from tasks.config import needs_hub
    from tasks.paths import user_path

    environment.quieten(hub=needs_hub(model))
    from flows.preview import propose, written
    from flows.text import printable

    path = user_path(to, field="--to")
    # Before anything that takes time; what is written there meanwhile is not lost either.
    write_new(path, None)
    write_new(path, written(propose(model, preferences, prompts, ctx.obj, say=say)))
    quoted = shlex.quote(str(path))
    print(printable(f"wrote {path}; look at it, then: rounds check {quoted}, and rounds run {quoted}"))


@commands.command()
def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this preset's file.", autocompletion=preset_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs that are ready to start, with what each needs and takes; or print the file of one."""
    from flows.config import PRESETS
    from flows.terminal.tables import Column, Table
    from tasks.errors import ConfigError

    texts = {path.stem: path.read_text() for path in sorted(PRESETS.glob("*.yaml"))}
    if name is not None:
        if name not in texts:
            raise ConfigError(f"{name}: no preset of that name; presets are {', '.join(texts)}")
        print(texts[name], end="")
        return
    about = {own: dict(re.findall(r"^# (what|needs|takes): (.*)$", text, re.M)) for own, text in texts.items()}
    if as_json:
        print_json([{"name": own, **facts} for own, facts in about.items()])
        return
    table = Table(
        columns=[
            Column(title="preset"),
            *(Column(title=t, wraps=True, least=LEAST_WORDS) for t in ("what", "needs", "takes")),
        ]
    )
    for own, facts in about.items():
        table.add_row(own, facts["what"], facts["needs"], facts["takes"])
    show(table)
    print("rounds run NAME starts one; rounds presets NAME > mine.yaml copies it")
