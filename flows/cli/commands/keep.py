"""Commands that look after what there is: export, verify, clean."""

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.options import FAILED, Json, RunName, print_json

commands = typer.Typer()


class What(StrEnum):
    policy = "policy"
    critic = "critic"
    reward_model = "reward_model"


@commands.command()
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
    from flows.outcomes.export import export_model
    from flows.runs import find_run
    from flows.text import printable
    from tasks.paths import user_path

    found = export_model(find_run(ctx.obj, run), user_path(to, field="--to"), part=what.value, round=round)
    if as_json:
        print_json(found.as_dict())
    else:
        print(printable(f"wrote {found.sentence}"))


@commands.command()
def verify(ctx: typer.Context, run: RunName = None, as_json: Json = False) -> None:
    """Read every committed file of a run and compare it with the digest that it was committed with."""
    from dataclasses import asdict

    from flows.outcomes import verify as verified
    from flows.runs import find_run

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


@commands.command()
def clean(
    ctx: typer.Context,
    run: RunName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove earlier attempts that a later one has replaced, and what interrupted ones left."""
    from dataclasses import asdict

    from flows.outcomes import clean as cleaned
    from flows.runs import find_run

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
