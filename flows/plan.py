"""The plan of a run: its stages in order, each with its committed output or the reason why it would execute.

The plan is found by running the flows themselves with a caller that looks up instead of executing, so that plan, status
and execution cannot disagree on what a run is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.config import FROM_POLICY, FROM_REWARD_MODEL, RunConfig, dump
from flows.round import rlhf_round
from flows.state import Externals, RoundState
from flows.workspace import Run
from tasks.errors import ConfigError
from tasks.external import model_ref
from tasks.imports import code_digest
from tasks.model_checks import ModelChecks
from tasks.recall import noting, recalling
from tasks.rewards import RewardConfig
from tasks.stage import StageCall, StageConfig
from tasks.store import Manifest, Place, Recipe, Ref, Store

STAGES = (
    "prepare_data",
    "warm_up",
    "train_reward_model",
    "critic_pretraining",
    "generate_rollouts",
    "score_rollouts",
    "compute_advantages",
    "update_policy",
    "audit_rollouts",
    "evaluate_policy",
    "report_round",
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Planned:
    """One stage of a plan. ``ref`` is its committed output; without one, ``reason`` says why it would execute."""

    stage: str
    place: Place
    key: str
    """Its place in the store, the same for all variants."""
    ref: Ref | None
    reason: str
    inputs: list["Planned"] = field(default_factory=list)

    def manifest(self) -> Manifest | None:
        return Manifest.read(self.ref.directory) if self.ref else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All stages of a run in the order of the flow, and the state that each round would leave."""

    stages: list[Planned]
    rounds: list[RoundState]

    def select(self, stage: str, *, round: int | None = None, iteration: int | None = None) -> list[Planned]:
        """The stages of that name, of one round and iteration where they are given."""
        return [
            planned
            for planned in self.stages
            if planned.stage == stage
            and round in (None, planned.place.round)
            and iteration in (None, planned.place.iteration)
        ]

    def with_downstream(self, first: Iterable[Planned]) -> list[Planned]:
        """These stages and all that are made from them, in the order of the flow."""
        chosen = set(first)
        for planned in self.stages:
            if any(made_from in chosen for made_from in planned.inputs):
                chosen.add(planned)
        return [planned for planned in self.stages if planned in chosen]


class Planner:
    """Calls stages by looking them up."""

    def __init__(self, run: Run, config: RunConfig) -> None:
        self._run = run
        self._config = config
        self._generations = run.generations
        self.stages: list[Planned] = []

    def __call__(self, stage: str, place: Place, config: StageConfig, **inputs: Any) -> Planned:
        call = stage_call(self._run, self._config, stage, place, config, self._generations)
        made_from = [x for value in inputs.values() for x in (value if isinstance(value, list | tuple) else [value])]
        waits_for = [x for x in made_from if isinstance(x, Planned)]
        refs = {name: resolved(value) for name, value in inputs.items()}
        recipe = call.with_inputs(refs).recipe()
        ready = all(planned.ref for planned in waits_for)
        ref = self._run.store.find(recipe) if ready else None
        reason = "" if ref else why(self._run.store, recipe, waits_for)
        planned = Planned(stage=stage, place=place, key=recipe.directory, ref=ref, reason=reason, inputs=waits_for)
        self.stages.append(planned)
        return planned


def resolved(value: Any) -> Any:
    """Refs of a planner's placeholders; None for one that is not committed."""
    if isinstance(value, list | tuple):
        return [item for item in (resolved(item) for item in value) if item is not None]
    return value.ref if isinstance(value, Planned) else value


def why(store: Store, recipe: Recipe, inputs: Sequence[Planned]) -> str:
    """Why a stage has no committed output: never ran, an input is not there, or what differs from its latest variant."""
    variants = [manifest for _, manifest in store.variants(recipe.directory)]
    if missing := [planned for planned in inputs if planned.ref is None]:
        return f"input {missing[0].stage} changes" if variants else "not run yet"
    if (store.root / "stages" / recipe.directory / recipe.fingerprint).is_dir():
        return "output is damaged"
    if not variants:
        return "not run yet"
    return what_differs(recipe.as_dict(), max(variants, key=lambda manifest: manifest.committed_at).recipe)


def what_differs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What sets our recipe apart from theirs, in words; of several causes the one from which the others follow."""
    if ours["generation"] != theirs["generation"]:
        return "forced"
    if ours["version"] != theirs["version"]:
        return f"stage version {theirs['version']} → {ours['version']}"
    # Before the settings, since the digest of generated data follows from the seed.
    if ours["seed"] != theirs["seed"]:
        return f"seed: {theirs['seed']} → {ours['seed']}"
    if changed := changed_fields(theirs["settings"], ours["settings"]):
        return ", ".join(changed)
    names = [name for name in ours["inputs"] if ours["inputs"][name] != theirs["inputs"].get(name)]
    return f"input {', '.join(names)} changed"


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``a.b: old → new`` for each leaf that differs."""
    changes: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed_fields(old, new, f"{prefix}{name}.")
        elif old != new:
            # Digests say nothing to people but that what they are of has changed.
            named = {"source_digests": "data changed", "code": f"code of {prefix.rstrip('.')} changed"}
            changes.append(named.get(name, f"{prefix}{name}: {old!s:.30} → {new!s:.30}"))
    return changes


def stage_call(
    run: Run, config: RunConfig, stage: str, place: Place, settings: StageConfig, generations: Mapping[str, int]
) -> StageCall:
    """The call of a stage, complete but for its inputs."""
    call = StageCall(
        stage=stage,
        place=place,
        settings=dump(settings),
        seed=config.seed,
        run_root=str(run.root),
        execution=dump(config.execution),
        health=dump(config.health),
        keeps_recoverable=keeps_checkpoint(config, place),
    )
    generation = generations.get(call.recipe().directory, 0)
    return StageCall(**{**{name: getattr(call, name) for name in StageCall.__slots__}, "generation": generation})


def keeps_checkpoint(config: RunConfig, place: Place) -> bool:
    """Whether a checkpoint's weights are kept: every so many iterations, and a round's last."""
    return place.iteration % config.checkpoint_every == 0 or place.iteration == config.iterations


def external_models(config: RunConfig, home: Any) -> Externals:
    """The models that a configuration names, found and checked."""
    model = config.model

    def ref(name: str | None, field: str, revision: str | None = None) -> Ref | None:
        if name is None:
            return None
        return model_ref(name, field=field, home=home, revision=revision, trust_remote_code=model.trust_remote_code)

    def reward_models(rewards: Mapping[str, RewardConfig], where: str) -> list[Ref]:
        named = {n: r.model for n, r in rewards.items() if r.names_model}
        return [found for n, m in named.items() if (found := ref(m, f"{where}.{n}.model")) is not None]

    return Externals(
        base=ref(model.policy, "model.policy", model.revision),
        critic=ref(model.critic if model.names_critic else None, "model.critic"),
        reward_model_base=ref(config.reward_model.base if config.reward_model else None, "reward_model.base"),
        rewards=reward_models(config.rewards, "rewards"),
        held_out_rewards=reward_models(config.evaluation.held_out_rewards, "evaluation.held_out_rewards"),
    )


def model_checks(config: RunConfig, externals: Externals, data: Ref | None) -> ModelChecks:
    """What this configuration asks of the models that it names; ``data`` is what prepare_data made, once it has."""
    model, evaluation = config.model, config.evaluation
    has_own_critic = config.has_critic and not model.critic_is_on_policy
    trains_reward_model = config.reward_model is not None
    from_policy = model.critic == FROM_POLICY or (model.critic is None and not trains_reward_model)

    def directory(ref: Ref | None) -> str | None:
        return None if ref is None else ref.path

    def by_field(rewards: Mapping[str, RewardConfig], where: str, refs: Sequence[Ref]) -> dict[str, str]:
        names = [name for name, reward in rewards.items() if reward.names_model]
        return {f"{where}.{name}.model": ref.path for name, ref in zip(names, refs, strict=True)}

    return ModelChecks(
        policy=directory(externals.base),
        critic=directory(externals.critic) if has_own_critic else None,
        reward_model_base=directory(externals.reward_model_base),
        reward_models={
            **by_field(config.rewards, "rewards", externals.rewards),
            **by_field(evaluation.held_out_rewards, "evaluation.held_out_rewards", externals.held_out_rewards),
        },
        max_new_tokens=config.rollouts.sampling.max_new_tokens,
        adapted_layers=model.lora.target_modules if model.lora else (),
        shared_trunk=model.shared_trunk,
        scalar_policy=(has_own_critic and from_policy) or (trains_reward_model and externals.reward_model_base is None),
        critic_is_reward_model=has_own_critic and trains_reward_model and model.critic in (None, FROM_REWARD_MODEL),
        gradient_checkpointing=config.execution.gradient_checkpointing,
        trust_remote_code=model.trust_remote_code,
        data=directory(data),
    )


def with_code_digests(config: RunConfig) -> RunConfig:
    """The configuration with the digest of each reward function's code, so that an edited function scores anew."""

    def digested(rewards: Mapping[str, RewardConfig]) -> dict[str, RewardConfig]:
        return {
            name: reward.model_copy(update={"code": code_digest(reward.function)}) if reward.function else reward
            for name, reward in rewards.items()
        }

    evaluation = config.evaluation.model_copy(update={"held_out_rewards": digested(config.evaluation.held_out_rewards)})
    return config.model_copy(update={"rewards": digested(config.rewards), "evaluation": evaluation})


def make_plan(run: Run, config: RunConfig) -> Plan:
    """What a run of this configuration would find and execute."""
    config = with_code_digests(config)
    externals = external_models(config, run.home)
    planner = Planner(run, config)
    rounds: list[RoundState] = []
    for number in range(1, config.rounds + 1):
        rounds.append(rlhf_round(planner, config, number, rounds[-1] if rounds else None, externals))
    return Plan(stages=planner.stages, rounds=rounds)


def plan_of(run: Run) -> Plan:
    """The plan of a run as it was begun, for whoever only looks: it needs neither data nor code nor models, nor to be asked
    from the directory in which the run began."""
    with recalling(run.seen):
        return make_plan(run, run.config)


def what_is_seen(run: Run, config: RunConfig) -> dict[str, Any]:
    """What a run's plan finds outside of it, to be remembered for ``plan_of``."""
    with noting() as seen:
        make_plan(run, config)
    return seen


def forced_by(plan: Plan, stage: str, *, round: int | None, iteration: int | None) -> list[Planned]:
    """What ``rerun --from STAGE`` forces: the stage from that round and iteration on, and all that is made from it.

    Without a round, the last one that has the stage; without an iteration, the round's first.
    """
    if stage not in STAGES:
        raise ConfigError(f"--from {stage}: no such stage; stages are {', '.join(STAGES)}")
    candidates = plan.select(stage, round=round)
    if not candidates:
        where = f" in round {round}" if round else ""
        raise ConfigError(f"--from {stage}: this run has no such stage{where}; rounds status shows what it has")
    last_round = max(planned.place.round for planned in candidates)
    candidates = [planned for planned in candidates if planned.place.round == last_round]
    chosen = iteration if iteration is not None else min(planned.place.iteration for planned in candidates)
    first = [planned for planned in candidates if planned.place.iteration == chosen]
    if not first:
        raise ConfigError(f"--iteration {iteration}: round {last_round} has no {stage} there; see rounds status")
    return plan.with_downstream(first)
