"""Committed outputs of a run, found in the store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.plan import plan_of
from flows.runs import Run
from tasks.errors import UserError
from tasks.store import Manifest, Place, Ref, place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A committed output and its place. One that is not current belongs to another configuration than the run's."""

    stage: str
    place: Place
    ref: Ref
    is_current: bool


def find_outputs(run: Run) -> list[Found]:
    """At each place the output that the run's plan finds there, else the one that was committed last.

    What a run made can be looked at when its plan finds nothing of it, or no plan can be made: after a reward function was
    edited, or a data file moved away.
    """
    try:
        plan = plan_of(run).stages
    except UserError:
        plan = []
    found = {(f.stage, f.place): f for f in latest_variants(run)}
    for planned in plan:
        if planned.ref is not None:
            key = (planned.stage, planned.place)
            found[key] = Found(stage=planned.stage, place=planned.place, ref=planned.ref, is_current=True)
    return list(found.values())


def latest_variants(
    run: Run, stage: str | None = None, *, where: Callable[[Place], bool] = lambda _: True
) -> list[Found]:
    """The output that was committed last at each place, of all stages or of one; only manifests of these places are read."""
    latest: dict[tuple[str, Place], tuple[Path, Manifest]] = {}
    for path in run.store.outputs(stage):
        manifest = Manifest.read_if_sound(path) if where(place_of(path)) else None
        if manifest is None:
            continue
        before = latest.get((manifest.stage, manifest.place))
        if before is None or manifest.committed_at > before[1].committed_at:
            latest[manifest.stage, manifest.place] = (path, manifest)
    return [
        Found(stage=stage, place=place, ref=Ref(str(directory), manifest.digest), is_current=False)
        for (stage, place), (directory, manifest) in latest.items()
    ]
