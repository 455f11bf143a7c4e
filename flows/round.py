"""One round: data and reward model as known by then, the iterations, evaluation and report."""

from collections.abc import Mapping
from typing import Any

from flows.config import FROM_POLICY, RunConfig, default_of
from flows.iteration import (
    Iteration,
    adapted_base,
    advantages_config,
    generated,
    iteration_settings,
    ppo_iteration,
    score_config,
)
from flows.state import Externals, Output, RoundState, RunStage, TrainState
from tasks.config import (
    AdvantagesConfig,
    CriticPretrainingStageConfig,
    EvaluatePolicyConfig,
    PrepareDataConfig,
    Source,
    TrainRewardModelConfig,
    WarmUpStageConfig,
)
from tasks.data import source_digest
from tasks.stages import STAGES
from tasks.store import Place

# The policy that samples is the reference, so that there is no KL; and a critic that knows nothing yet is no part of its
# own target, which is what was received in the end. What else is set of these changes nothing.
FOR_PRETRAINING: Mapping[str, Any] = {
    **{
        name: default_of(AdvantagesConfig, name)
        for name in ("kl_estimator", "kl_target", "kl_horizon", "lam", "lam_alpha")
    },
    "kl_coef": 0.0,
    "critic_lam": 1.0,
    "horizon": None,
    "whiten": False,
}


def rlhf_round(
    run: RunStage, config: RunConfig, number: int, before: RoundState | None, externals: Externals
) -> RoundState:
    """Round ``number``, from the state that the round before left; None in the first."""
    place = Place(number)
    data = prepared_data(run, config, place, before, externals)
    reference = before.reference if before else starting_policy(run, config, place, data, externals)
    reward_model = trained_reward_model(run, config, place, before, data, reference, externals)
    train = before.train if before else starting_models(run, config, place, data, reference, reward_model, externals)
    has_pretrained = before is None and config.has_critic and config.critic_pretraining is not None
    pretraining = train.critic if has_pretrained else None

    settings = iteration_settings(config)
    rollouts: list[list[Output]] = []
    iterations: list[Iteration] = []
    for iteration in range(1, config.iterations + 1):
        # What this state samples for a later iteration is asked for before the update that follows it, and waits for none.
        rollouts += [
            generated(run, config, settings, Place(number, ahead), train.policy, data=data, reference=reference)
            for ahead in range(len(rollouts) + 1, min(iteration + config.rollouts.lag, config.iterations) + 1)
        ]
        done = ppo_iteration(
            run,
            config,
            settings,
            Place(number, iteration),
            train,
            rollouts=rollouts[iteration - 1],
            reference=reference,
            reward_model=reward_model,
            externals=externals,
            first_audit=iterations[0].audit if iterations else None,
        )
        iterations.append(done)
        train = done.train

    evaluation = run(
        "evaluate_policy",
        place,
        evaluation_config(config),
        policy=train.policy,
        reference=reference,
        reward_model=reward_model,
        external={**externals.rewards, **externals.held_out_rewards},
        data=data,
        lora_base=adapted_base(config, reference),
    )
    report = run(
        "report_round",
        place,
        config.report,
        rollouts=[rolled for done in iterations for rolled in done.rollouts],
        scored=[scored for done in iterations for scored in done.scored],
        experience=[done.experience for done in iterations],
        audits=[done.audit for done in iterations],
        checkpoints=[done.train.policy for done in iterations],
        evaluation=evaluation,
        reward_model=reward_model,
        previous=before.report if before else None,
        pretraining=pretraining,
    )
    return RoundState(data=data, reference=reference, reward_model=reward_model, train=train, report=report)


def prepared_data(
    run: RunStage, config: RunConfig, place: Place, before: RoundState | None, externals: Externals
) -> Output:
    """This round's data; where no source begins to count in it, that of the round before."""
    data = config.data
    sources = (*data.prompts, *data.held_out_prompts, *data.preferences, *data.texts)
    if before is not None and not any(source.from_round == place.round for source in sources):
        return before.data

    def active(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(source for source in sources if source.from_round <= place.round)

    by_now = data.model_copy(
        update={name: active(getattr(data, name)) for name in ("prompts", "held_out_prompts", "preferences", "texts")}
    )
    known = (*by_now.prompts, *by_now.held_out_prompts, *by_now.preferences, *by_now.texts)
    settings = PrepareDataConfig(
        data=by_now,
        from_scratch=config.model.from_scratch if before is None else None,
        response_tokens=config.rollouts.sampling.max_new_tokens,
        source_digests=tuple(source_digest(source, seed=config.seed) for source in known),
        adapted_layers=config.model.lora.target_modules if config.model.lora else (),
        access=config.model.access("chat_template_kwargs"),
    )
    # From the second round on, the policy is what the first one started from, whether given or made there.
    if before is None:
        return run("prepare_data", place, settings, base=externals.base)
    return run("prepare_data", place, settings, base=before.reference, previous=before.data)


def starting_policy(run: RunStage, config: RunConfig, place: Place, data: Output, externals: Externals) -> Output:
    """The policy that PPO starts from, and its reference ever after."""
    base = data if externals.base is None else externals.base
    if config.warm_up is None:
        return base
    settings = WarmUpStageConfig(**dict(config.warm_up), access=config.model.access())
    return run("warm_up", place, settings, base=base, data=data)


def trained_reward_model(
    run: RunStage,
    config: RunConfig,
    place: Place,
    before: RoundState | None,
    data: Output,
    reference: Output,
    externals: Externals,
) -> Output | None:
    """The reward model on the preferences known by now; kept where the round brought no new ones."""
    if config.reward_model is None:
        return None
    if before is not None and not any(source.from_round == place.round for source in config.data.preferences):
        return before.reward_model
    settings = TrainRewardModelConfig(
        **dict(config.reward_model),
        sampling=config.rollouts.sampling,
        stop_strings=config.rollouts.stop_strings,
        access=config.model.access("chat_template_kwargs"),
    )
    base = externals.reward_model_base or reference
    return run(
        "train_reward_model",
        place,
        settings,
        base=base,
        reference=reference,
        data=data,
        lora_base=adapted_base(config, reference),
    )


def starting_models(
    run: RunStage,
    config: RunConfig,
    place: Place,
    data: Output,
    reference: Output,
    reward_model: Output | None,
    externals: Externals,
) -> TrainState:
    """The critic starts from what ``model.critic`` names, by default from the reward model, without one from the policy.

    It is pre-trained once: in later rounds it goes on from what it has learned, also where the reward model is a new one,
    whose scores have the same mean and spread on the reference's responses.
    """
    if not config.has_critic:
        return TrainState(policy=reference, critic=None)
    critic = externals.critic or reward_model or reference
    if config.model.critic == FROM_POLICY or config.model.critic_is_on_policy:
        critic = reference
    if config.critic_pretraining is not None:
        critic = run(
            "critic_pretraining",
            place,
            pretraining_config(config),
            reference=reference,
            critic=critic,
            reward_model=reward_model,
            external=externals.rewards,
            data=data,
            lora_base=adapted_base(config, reference),
        )
    return TrainState(policy=reference, critic=critic)


def pretraining_config(config: RunConfig) -> CriticPretrainingStageConfig:
    assert config.critic_pretraining is not None
    own = dict(config.critic_pretraining)
    if own["learning_rate"] is None:
        own["learning_rate"] = config.optimizers.critic_learning_rate
    return CriticPretrainingStageConfig(
        **own,
        scoring=score_config(config).model_copy(update={"exact_kl": False}),
        advantages=advantages_config(config).model_copy(update=FOR_PRETRAINING),
        versions={name: STAGES[name].version for name in ("score_rollouts", "compute_advantages")},
        sampling=config.rollouts.sampling,
        stop_strings=config.rollouts.stop_strings,
        access=config.model.access("chat_template_kwargs", "lora", "shared_trunk"),
    )


def evaluation_config(config: RunConfig) -> EvaluatePolicyConfig:
    return EvaluatePolicyConfig(
        samples_per_prompt=config.evaluation.samples_per_prompt,
        rewards=config.rewards,
        held_out_rewards=config.evaluation.held_out_rewards,
        engine=config.rollouts.engine,
        sampling=config.rollouts.sampling,
        stop_strings=config.rollouts.stop_strings,
        access=config.model.access("chat_template_kwargs"),
    )
