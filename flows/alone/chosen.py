"""Which model is meant: a policy of a run, or one that a command names."""

from dataclasses import dataclass
from pathlib import Path

from flows.outcomes.outputs import Found, find_outputs
from flows.plan import Planned, plan_of
from flows.runs import Run
from tasks.config import ModelAccess
from tasks.errors import ConfigError, RunError
from tasks.stages import STAGES
from tasks.store import Manifest, Place, Ref, model_ref, require_undamaged

AN_ADAPTER = "lora_base"
"""The input of a stage that says what adapters are over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A policy, and how it is loaded."""

    ref: Ref
    called: str
    """As messages name it."""
    access: ModelAccess
    place: Place | None = None
    """Where its run made it; round 0 is before any. None of a model that is no run's."""
    lora_base: Ref | None = None


def named_model(name: str, home: Path, *, access: ModelAccess | None = None) -> Chosen:
    """The model of a directory or of a hub's name.

    Raises:
        ModelError: there is no such model.
    """
    access = access or ModelAccess()
    ref = model_ref(name, field="--model", home=home, trust_remote_code=access.trust_remote_code)
    return Chosen(ref=ref, called=name, access=access)


def policy_of(run: Run, *, round: int | None = None, iteration: int | None = None) -> Chosen:
    """A run's policy after an iteration, by default its last one; of round 0, and where nothing is updated yet, the one that
    it starts from.

    Raises:
        ConfigError: the run has no such round or iteration.
        RunError: it has no policy yet.
    """
    if round == 0 and iteration is not None:
        raise ConfigError(f"--iteration {iteration}: round 0 is the policy before any; leave one of the two out")
    stage = STAGES.that_makes("policy")
    updates = [found for found in find_outputs(run) if found.stage == stage]
    # What an earlier configuration made further on is not this one's last.
    updates = [found for found in updates if found.is_current] or updates
    if round == 0 or (not updates and round is None and iteration is None):
        return starting_policy_of(run)
    updates = at_place(run, updates, round, iteration)
    last = max(updates, key=lambda found: found.place)
    require_undamaged(last.ref)
    base = run.store.inputs_of(Manifest.read(last.ref.directory)).get(AN_ADAPTER)
    assert base is None or isinstance(base, Ref)
    called = f"policy of {run.name}, round {last.place.round}, iteration {last.place.iteration}"
    return Chosen(ref=last.ref, called=called, access=access_of(run), place=last.place, lora_base=base)


def at_place(run: Run, updates: list[Found], round: int | None, iteration: int | None) -> list[Found]:
    """Those of this round and iteration, where they are asked for."""
    for option, asked in (("round", round), ("iteration", iteration)):
        if asked is None:
            continue
        there = sorted({getattr(found.place, option) for found in updates})
        updates = [found for found in updates if getattr(found.place, option) == asked]
        if not updates:
            has = f"it has {', '.join(map(str, there))}" if there else "it has none yet"
            raise ConfigError(f"--{option} {asked}: run {run.name} has no policy of that {option}; {has}")
    return updates


def starting_policy_of(run: Run) -> Chosen:
    """The policy that a run starts from, which is its reference."""
    reference = plan_of(run).rounds[0].reference
    ref = reference.ref if isinstance(reference, Planned) else reference
    if ref is None:
        raise RunError(f"run {run.name} has no policy yet; rounds status {run.name} shows how far it is")
    require_undamaged(ref)
    return Chosen(ref=ref, called=f"policy that {run.name} starts from", access=access_of(run), place=Place(0))


def access_of(run: Run) -> ModelAccess:
    """How a run's models are loaded."""
    return run.config.model.access("chat_template_kwargs")
