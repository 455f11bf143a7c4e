"""A round that somebody adds by hand: what the schedule does for files that arrived, for files that are named."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flows.config import RunConfig
from flows.launch import Outcome, begin, prepared
from flows.plan import KINDS, Plan, identity
from flows.runs import Run
from flows.schedules.arrivals import GOES_ON, GROWING, Lists, NextStep, expanded, step_from
from tasks import environment
from tasks.config import Source
from tasks.data import Findings, matching_paths, read_rows, to_preferences, to_prompts
from tasks.errors import ConfigError, DataError, RunError

Files = Mapping[str, Sequence[str]]
"""Paths and patterns by the kind of data that they hold, which is also the name of the option that names them."""


def add_round(run: Run, config: RunConfig, files: Files, tell: Callable[[str], None]) -> Outcome:
    """Have a run make one more round. Raises ``StageError``."""
    with run.locked():
        step, wanted, plan = planned_round(run, config, files)
        tell(step.what)
        return begin(run, wanted, plan)


def planned_round(run: Run, config: RunConfig, files: Files) -> tuple[NextStep, RunConfig, Plan]:
    """What would be done, the configuration for it and its plan. Nothing is touched."""
    step = step_by_hand(run, config, files)
    assert step.config is not None, "to add a round is something to do"
    return step, step.config, prepared(run, step.config)


def step_by_hand(run: Run, config: RunConfig, files: Files) -> NextStep:
    """One more round with these files; without any, with the data that there is. The same again continues it."""
    before = run.config
    if config.data != before.data or config.rounds != before.rounds:
        raise ConfigError(
            "--set: data and rounds are what add-round itself sets; name files with --preferences or --prompts"
        )
    used: Lists = {kind: getattr(before.data, kind) for kind in KINDS}
    given: Lists = {kind: sources_at(files.get(kind, ()), used[kind], option=f"--{kind}") for kind in GROWING}
    new = {kind: [source for source in given[kind] if not has(used[kind], source)] for kind in GROWING}
    require_usable(config, new)
    step = step_from(run, config, used | {kind: (*used[kind], *new[kind]) for kind in GROWING}, used)
    if step.title == GOES_ON:
        if any(new.values()):
            raise RunError(
                f"run {run.name} is not finished ({step.what.removeprefix(f'{GOES_ON}: ')}); continue it first with: "
                f"rounds {environment.home_option(run.home)}rerun {run.name}"
            )
        require_new(run, given, used, before_round=before.rounds)
        return step
    require_new(run, given, used, before_round=before.rounds + 1)
    if step.config is None:
        more = config.model_copy(update={"rounds": before.rounds + 1})
        step = replace(step_from(run, more, used, used), what=f"adds round {more.rounds} with the data that there is")
    return step


def sources_at(paths: Sequence[str], used: Sequence[Source], *, option: str) -> tuple[Source, ...]:
    """The files that are named, read as the run's last source of their kind is."""
    try:
        for path in paths:
            matching_paths(path)
    except DataError as error:
        raise DataError(f"{option} {error}") from error
    columns = used[-1].columns if used else {}
    return expanded(Source(path=path, columns=columns) for path in paths)


def has(used: Sequence[Source], source: Source) -> bool:
    return any(identity(own) == identity(source) for own in used)


def require_new(run: Run, given: Lists, used: Lists, *, before_round: int) -> None:
    """Refuse files that the run has used in a round before this one."""
    for kind, sources in given.items():
        for source in sources:
            for own in used[kind]:
                if identity(own) == identity(source) and own.from_round < before_round:
                    raise ConfigError(
                        f"--{kind} {source.path}: run {run.name} has used it since round {own.from_round}; put what is new "
                        "into a file of its own, and name that"
                    )


def require_usable(config: RunConfig, new: Mapping[str, Sequence[Source]]) -> None:
    """Refuse files that cannot be read, or with bad rows, before the run is told of them."""
    findings = Findings()
    for kind, convert in (("preferences", to_preferences), ("prompts", to_prompts)):
        convert([row for source in new[kind] for row in read_rows(source, seed=config.seed)], findings)
    if config.data.on_bad_row == "error":
        findings.require_no_bad_rows()
