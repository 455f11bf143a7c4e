"""Which committed stages ``rounds replay`` makes again, and what it says of them."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from flows.plan import plan_of
from flows.runs import Run
from tasks.config import ExecutionConfig
from tasks.errors import ConfigError, RunError
from tasks.paths import shown
from tasks.stages import STAGES
from tasks.store import Place, Ref
from tasks.worker.replay import Replayed, replay

"""What follows from the rollouts by arithmetic alone, in the order of the flow."""


def replay_iteration(
    run: Run,
    *,
    round: int | None,
    iteration: int | None,
    device: str | None,
    report: Callable[[str, Mapping[str, Any]], None],
) -> list[Replayed]:
    """Make the stages of one iteration again, by default of the latest that has an update."""
    from tasks.contract import ResidentModels
    from tasks.models import prefer_determinism

    execution = run.config.execution if device is None else on_device(run.config.execution, device)
    stages = [planned for planned in plan_of(run).stages if planned.ref is not None]
    updates = [
        planned.place
        for planned in stages
        if planned.stage == "update_policy"
        and round in (None, planned.place.round)
        and iteration in (None, planned.place.iteration)
    ]
    if not updates:
        asked = [f"round {round}"] * (round is not None) + [f"iteration {iteration}"] * (iteration is not None)
        raise RunError(
            f"run {run.name} has no committed update{' of ' + ', '.join(asked) if asked else ''}; "
            f"rounds status {run.name} shows what it has"
        )
    place = max(updates)
    chosen: list[tuple[str, Place, Ref]] = [
        (planned.stage, planned.place, planned.ref)
        for name in STAGES.replayed
        for planned in stages
        if planned.stage == name and (planned.place.round, planned.place.iteration) == (place.round, place.iteration)
        if planned.ref is not None
    ]
    prefer_determinism()
    models = ResidentModels()
    return [
        replay(ref, run.store, execution, models, lambda event, s=stage, p=where: report(f"{s}-{p.label}", event))  # type: ignore[misc]
        for stage, where, ref in chosen
    ]


def on_device(execution: ExecutionConfig, device: str) -> ExecutionConfig:
    """The same execution on a device that the command names."""
    try:
        return ExecutionConfig(**{**dict(execution), "device": device})
    except ValidationError as error:
        raise ConfigError(
            f"--device {shown(device)}: no such kind of device; give auto, cpu, cuda, cuda:1 or mps"
        ) from error
