"""Attempts: the outputs that a place has had under one configuration after another, kept until ``rounds clean``."""

from collections import defaultdict
from dataclasses import dataclass

from flows.plan.planned import Plan
from flows.plan.reasons import what_differs
from flows.runs import Run
from tasks.errors import ConfigError, RunError
from tasks.store import Manifest, Place, Ref

ID_LENGTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One committed output of a place that has several."""

    id: str
    """The first digits of the fingerprint that its directory is called by."""
    stage: str
    place: str
    committed_at: float
    rows: int
    seconds: float
    is_current: bool
    differs: str
    """What sets it apart from the current attempt, else from the last one, as ``field: its value → the other's``."""


def attempts_of(run: Run, plan: Plan) -> list[Attempt]:
    """All attempts at the places that have more than one, in the order of the flow, the oldest first."""
    current = {planned.ref.path for planned in plan.stages if planned.ref is not None}
    by_place: dict[tuple[Place, str], list[tuple[Ref, Manifest]]] = defaultdict(list)
    for directory, manifest in run.store.manifests():
        by_place[manifest.place, manifest.stage].append((Ref(str(directory), manifest.digest), manifest))
    order = {(planned.place, planned.stage): number for number, planned in enumerate(plan.stages)}
    attempts = []
    for at, outputs in sorted(by_place.items(), key=lambda item: order.get(item[0], len(order))):
        if len(outputs) == 1:
            continue
        outputs.sort(key=lambda output: output[1].committed_at)
        valid = next((manifest for ref, manifest in outputs if ref.path in current), outputs[-1][1])
        for ref, manifest in outputs:
            attempts.append(
                Attempt(
                    id=manifest.fingerprint[:ID_LENGTH],
                    stage=manifest.stage,
                    place=at[0].label,
                    committed_at=manifest.committed_at,
                    rows=manifest.rows,
                    seconds=manifest.seconds,
                    is_current=ref.path in current,
                    differs="" if manifest is valid else what_differs(valid.recipe, manifest.recipe),
                )
            )
    return attempts


def find_attempt(run: Run, id: str, stages: tuple[str, ...]) -> tuple[Ref, Manifest]:
    """The output of one of these stages whose fingerprint begins with ``id``."""
    found = [(Ref(str(path), m.digest), m) for path, m in run.store.manifests() if m.fingerprint.startswith(id)]
    hint = f"rounds status {run.name} --attempts lists what there is"
    if not id or not found:
        raise RunError(f"--attempt {id}: run {run.name} has no such output; {hint}")
    if len(found) > 1:
        raise ConfigError(f"--attempt {id}: {len(found)} outputs begin so; give more digits of it")
    ((ref, manifest),) = found
    if manifest.stage not in stages:
        raise ConfigError(f"--attempt {id}: an output of {manifest.stage}, which holds no rollouts; {hint}")
    return ref, manifest
