"""Commands before a run: check, new, presets."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import say
from flows.cli.completion import configurations
from flows.cli.options import Json, Overrides, print_json, show

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
    from flows.terminal.preview_view import preview_view
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
