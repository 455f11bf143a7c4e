"""What a shell completes: runs, stages, presets, settings, metrics, data sets. Nothing heavy is imported, and no mistake is
told, since a shell would print it into the line that is being written."""

import dataclasses
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import typer

Completer = Callable[[typer.Context, str], list[str]]


def quiet(names: Callable[[typer.Context], Iterator[str]]) -> Completer:
    """The names that begin as what is written; none where anything is wrong."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return [name for name in names(ctx) if name.startswith(incomplete)]
        except Exception:
            return []

    return complete


@quiet
def runs(ctx: typer.Context) -> Iterator[str]:
    from tasks import environment

    given = ctx.find_root().params.get("home")
    home = environment.home_directory(given)
    yield from sorted(path.parent.name for path in (home / "runs").glob("*/run.json"))


@quiet
def presets(_: typer.Context) -> Iterator[str]:
    from flows.config.reading import PRESETS

    yield from sorted(path.stem for path in PRESETS.glob("*.yaml"))


@quiet
def configurations(_: typer.Context) -> Iterator[str]:
    from flows.config.reading import PRESETS

    yield from sorted(path.stem for path in PRESETS.glob("*.yaml"))
    yield from sorted(str(path) for pattern in ("*.yaml", "*.yml") for path in Path().glob(pattern))


@quiet
def stages(_: typer.Context) -> Iterator[str]:
    from tasks.stages import STAGES

    yield from STAGES.of_a_run


@quiet
def data_sets(_: typer.Context) -> Iterator[str]:
    from tasks.stages import STAGES

    yield from STAGES.data_sets


@quiet
def metrics(_: typer.Context) -> Iterator[str]:
    from tasks.metrics.declared import GLOSSARY

    yield from GLOSSARY


@quiet
def settings(_: typer.Context) -> Iterator[str]:
    """Each setting with ``=`` behind it, as ``--set`` takes it."""
    from flows.config import RunConfig

    yield from (f"{name}=" for name in names_of(RunConfig))


def names_of(section: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings of a section, and of the sections in it."""
    from typing import get_args, get_type_hints

    for name, hint in get_type_hints(section).items():
        inner = next((kind for kind in (hint, *get_args(hint)) if is_section(kind)), None)
        if inner is not None:
            yield from names_of(inner, f"{prefix}{name}.")
        elif name in settings_in(section):
            yield f"{prefix}{name}"


def is_section(kind: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def settings_in(section: Any) -> Container[str]:
    if dataclasses.is_dataclass(section):
        return [field.name for field in dataclasses.fields(section)]
    found: Container[str] = section.model_fields
    return found
