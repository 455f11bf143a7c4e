"""A run begun from Python, as ``rounds run`` begins it; rows in memory may be its data.

run = flows.start("rounds.yaml", name="mine", preferences=frame)
run.metrics()
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.config import RunConfig, checked, dump
from flows.config.reading import read_document
from flows.launch import prepared
from flows.launch import start as launch
from flows.opened import OpenedRun
from flows.runs import named_run
from tasks import environment
from tasks.contract import StageError
from tasks.errors import ConfigError
from tasks.paths import shown
from tasks.store.given_rows import are_rows, write_once

DATA = "data"
"""The section of a configuration whose sources may be rows, and the directory of a home where these lie."""


def start(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    name: str | None = None,
    home: str | Path | None = None,
    prompts: Any = None,
    preferences: Any = None,
    texts: Any = None,
) -> OpenedRun:
    """Run all rounds, or go on with a run that was stopped; with the same arguments again, all of it is reused.

    ``config`` is a preset's name, a file, or a whole configuration. ``prompts``, ``preferences`` and ``texts`` take the
    place of the sources of that name in ``data``: a ``pandas.DataFrame``, a ``datasets.Dataset``, or what a configuration
    may have there; a list for several. Rows in memory are written below HOME/data, once for the same content, and may also
    stand in the configuration wherever the path of a source may. A process tells one Prefect server: runs in a second home
    are shown on the pages of the first.

    Raises:
        UserError: a mistake in what was given, of which a sentence tells.
        StageError: a stage failed; the same call goes on when it is mended.
        KeyboardInterrupt: it was cancelled; nothing that was committed is lost.
    """
    environment.quieten(hub=True)
    where = environment.home_directory(home)
    if isinstance(config, str | Path):
        document, name = read_document(str(config)), Path(config).stem if name is None else name
    elif isinstance(config, RunConfig | Mapping):
        document = dump(config) if isinstance(config, RunConfig) else dict(config)
    else:
        raise ConfigError(
            f"config: a {type(config).__name__} is none; give a preset's name, a file, a dict or a RunConfig"
        )
    if name is None:
        raise ConfigError('name: missing; a configuration in memory has none, so say for example name="mine"')
    sources = {"prompts": prompts, "preferences": preferences, "texts": texts}
    chosen = checked(with_sources(document, sources, where / DATA), where=name)
    environment.quieten(hub=chosen.needs_hub())
    run = named_run(where, name)
    try:
        outcome = launch(run, chosen, prepared(run, chosen))
    except StageError as error:
        if error.kind == "cancelled":
            raise KeyboardInterrupt from error
        raise
    for sentence in outcome.unreported:
        warnings.warn(f"not reported: {sentence}", stacklevel=2)
    return OpenedRun(run)


def with_sources(document: Mapping[str, Any], sources: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The configuration with these sources in the place of its own, and all rows in memory as files of ``directory``."""
    data = document.get(DATA, {})
    if not isinstance(data, Mapping):
        # What is wrong with it, the configuration says itself.
        return dict(document)
    given = {name: source for name, source in sources.items() if source is not None}
    # A configuration has lists; rows alone, and what is given as an argument, may stand without one.
    alone = {name for name, value in {**data, **given}.items() if are_rows(value)}
    alone |= {name for name, source in given.items() if not isinstance(source, list | tuple)}
    found = {name: [value] if name in alone else value for name, value in {**data, **given}.items()}
    return {**document, DATA: {name: as_files(v, directory, field=f"data.{name}") for name, v in found.items()}}


def as_files(value: Any, directory: Path, *, field: str) -> Any:
    """A source, or several, in which no rows are left."""
    if are_rows(value):
        return {"path": str(write_once(directory, value, field=field))}
    if isinstance(value, Mapping):
        files = {name: write_once(directory, inner, field=field) for name, inner in value.items() if are_rows(inner)}
        return {**value, **{name: str(file) for name, file in files.items()}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_files(inner, directory, field=field) for inner in value]
    if type(value).__module__.partition(".")[0] in ("pandas", "datasets", "polars", "pyarrow", "numpy"):
        raise ConfigError(
            f"{field}: a {shown(type(value).__name__)} is no source; give a pandas.DataFrame or a datasets.Dataset"
        )
    return value
