"""The configuration of a run: one document whose parts belong to the stages that they configure.

A run is one configuration and its directory. Everything that a run does follows from it, so it is checked whole before
anything starts, and a mistake is one sentence that names the field, the value and the next move.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator

from flows.config.as_written import require_as_written
from flows.config.bounds import require_bounded
from flows.config.lag import require_lag_fits
from flows.config.models import FROM_REWARD_MODEL, ModelConfig
from ppo_core.config import COMPARES_SAMPLES, PPOConfig
from tasks.config import (
    ENGINES,
    AdvantagesConfig,
    Algorithm,
    CriticPretrainingConfig,
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    HealthConfig,
    OptimizersConfig,
    ReportRoundConfig,
    RewardModelConfig,
    Rewards,
    RolloutsConfig,
    StageConfig,
    WarmUpConfig,
    collision,
    needs_hub,
)

WITH_REWARDS_TO_GO = ("reinforce", "vanilla_pg")
"""Algorithms whose advantage can be that of a token, without a critic."""
ONE_STEP: Mapping[str, Any] = {"loss": "pg", "epochs": 1, "num_minibatches": 1}
"""What the policy gradient without a ratio is right for, and what ``vanilla_pg`` is."""
OF_THE_CRITIC = (
    "model.critic",
    "model.shared_trunk",
    "advantages.lam",
    "advantages.lam_alpha",
    "advantages.critic_lam",
    "advantages.horizon",
    "advantages.bootstrap",
    "ppo.cliprange_value",
    "ppo.vf_coef",
    "ppo.critic_epochs",
    "ppo.critic_max_grad_norm",
    "optimizers.critic_learning_rate",
    "optimizers.critic_warmup",
)
"""Settings that only a run with a critic reads."""
OF_A_CRITIC_WITH_A_BODY = (
    "ppo.critic_epochs",
    "ppo.critic_max_grad_norm",
    "optimizers.critic_warmup",
)
"""Settings that a critic on the policy's body, which learns in the policy's steps, does not read."""
OF_OTHER_ENGINES = ("execution.engine_servers", "health.max_engine_difference")
"""Settings that only a run reads whose sampling engine is not the trainer."""
OF_OTHER_SAMPLERS = ("ppo.importance_cap",)
"""Settings that only a run reads which learns from what another engine sampled, or a policy of before."""


class TrackingConfig(StageConfig):
    """Where metrics and artifacts are logged; the server is that of ``MLFLOW_TRACKING_URI``, else one file in the home."""

    experiment: str = "rlhf-rounds"
    """MLflow experiment that the runs are listed under."""


class RunConfig(StageConfig):
    """One run, whole."""

    algorithm: Algorithm = "ppo"
    """What an advantage is: ppo learns a critic; grpo, dr_grpo and rloo compare the samples of a prompt, reinforce those of
    an iteration, vanilla_pg nothing: these have no critic, and take no setting of one."""
    seed: int = Field(0, ge=0)
    """Every random draw of the run is a function of it."""
    rounds: int = Field(1, gt=0)
    """A round trains the reward model on the preferences known by then, then makes its iterations."""
    iterations: int = Field(8, gt=0)
    """An iteration is rollouts, scores, advantages and one update."""
    checkpoint_every: int = Field(1, gt=0)
    """Iterations between checkpoints whose weights are kept, beside each round's last. Those between are made again, when
    they are needed, by updating over the committed experience."""
    keep_checkpoints: int | None = Field(None, gt=0)
    """How many checkpoints keep their weights, the newest ones; null keeps all that ``checkpoint_every`` does."""
    model: ModelConfig
    data: DataConfig
    warm_up: WarmUpConfig | None = None
    reward_model: RewardModelConfig | None = None
    critic_pretraining: CriticPretrainingConfig | None = CriticPretrainingConfig()
    rewards: Rewards = Field(min_length=1)
    """The score is their weighted sum. The names are yours."""
    rollouts: RolloutsConfig
    advantages: AdvantagesConfig = AdvantagesConfig()
    ppo: PPOConfig = PPOConfig()
    optimizers: OptimizersConfig = OptimizersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportRoundConfig = ReportRoundConfig()
    health: HealthConfig = HealthConfig()
    execution: ExecutionConfig = ExecutionConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def has_critic(self) -> bool:
        return self.algorithm == "ppo"

    @model_validator(mode="wrap")
    @classmethod
    def _is_what_was_written(cls, document: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        config = read(document)
        require_as_written(document, config)
        require_bounded(config)
        require_lag_fits(config)
        return config

    @model_validator(mode="before")
    @classmethod
    def _vanilla_pg_is_what_its_name_says(cls, document: Any) -> Any:
        if not isinstance(document, Mapping) or document.get("algorithm") != "vanilla_pg":
            return document
        given = document.get("ppo", {})
        return {**document, "ppo": {**ONE_STEP, **given}} if isinstance(given, Mapping) else document

    @model_validator(mode="after")
    def _policy_gradient_takes_one_step(self) -> Self:
        for name, value in ONE_STEP.items():
            own = getattr(self.ppo, name)
            if own == value:
                continue
            if self.algorithm == "vanilla_pg":
                raise ValueError(
                    f"ppo.{name}={own}: algorithm: vanilla_pg is one step without a ratio; leave it out, or say reinforce"
                )
            if self.ppo.loss == "pg":
                raise ValueError(
                    f"ppo.loss=pg: with ppo.{name}={own} it is off-policy from its second step on, without a ratio; set "
                    "ppo.epochs and ppo.num_minibatches to 1, or take ppo.loss: ppo"
                )
        return self

    @model_validator(mode="after")
    def _algorithm_is_served(self) -> Self:
        rollouts, advantages = self.rollouts, self.advantages
        if self.algorithm in COMPARES_SAMPLES and rollouts.samples_per_prompt < 2:
            raise ValueError(
                f"rollouts.samples_per_prompt={rollouts.samples_per_prompt}: algorithm: {self.algorithm} compares the "
                "samples of a prompt; take at least 2, 8 is usual"
            )
        pretraining = self.critic_pretraining
        if not self.has_critic and pretraining not in (None, CriticPretrainingConfig()):
            raise ValueError(f"critic_pretraining: algorithm: {self.algorithm} has no critic; leave the section out")
        if pretraining is not None and self.reward_model is not None:
            self._require_defaults(
                ("critic_pretraining.samples",), "the responses are those of reward_model.calibration_samples"
            )
        if not self.has_critic:
            self._require_defaults(OF_THE_CRITIC, f"algorithm: {self.algorithm} has no critic")
            if not advantages.reward_to_go:
                self._require_defaults(
                    ("advantages.gamma",),
                    "without a critic it discounts the rewards of advantages.reward_to_go alone",
                )
        if self.algorithm not in WITH_REWARDS_TO_GO:
            self._require_defaults(
                ("advantages.reward_to_go",),
                f"only {' and '.join(WITH_REWARDS_TO_GO)} give each token its own",
            )
        if self.model.shared_trunk:
            self._require_defaults(OF_A_CRITIC_WITH_A_BODY, "with model.shared_trunk the critic learns with the policy")
            if self.ppo.kl_loss_coef > 0 and self.ppo.kl_loss_estimator == "exact":
                raise ValueError(
                    "ppo.kl_loss_estimator=exact: with model.shared_trunk the update makes no logits to compare; take k3"
                )
        elif self.has_critic:
            self._require_defaults(("ppo.vf_coef",), "only a critic with model.shared_trunk shares a loss")
        if self.model.critic == FROM_REWARD_MODEL and self.reward_model is None:
            raise ValueError(
                "model.critic=reward_model: the run trains none; add a reward_model section, or say policy"
            )
        if self.optimizers.critic_warmup >= self.iterations:
            raise ValueError(
                f"optimizers.critic_warmup={self.optimizers.critic_warmup}: the first round has {self.iterations} "
                "iterations, so it would not train the policy; take fewer"
            )
        if advantages.length_cut.ramp_tokens > rollouts.sampling.max_new_tokens:
            raise ValueError(
                f"advantages.length_cut.ramp_tokens={advantages.length_cut.ramp_tokens}: responses have at most "
                f"rollouts.sampling.max_new_tokens={rollouts.sampling.max_new_tokens} tokens; lower it"
            )
        responses = rollouts.prompts_per_iteration * rollouts.samples_per_prompt
        if advantages.kl_target is not None and not responses < 5 * advantages.kl_horizon:
            raise ValueError(
                f"advantages.kl_horizon={advantages.kl_horizon:g}: with {responses} responses an iteration it must exceed "
                f"{responses / 5:g}, or kl_coef could fall to 0 at once"
            )
        return self

    def _require_defaults(self, paths: Sequence[str], why: str) -> None:
        """Refuse a setting that nothing would read."""
        for path in paths:
            section, name = path.split(".")
            value = getattr(getattr(self, section), name)
            if value != default_of(type(getattr(self, section)), name):
                raise ValueError(f"{path}={value}: {why}; leave it out")

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        trained = any(reward.is_trained_in_run for reward in self.rewards.values())
        if trained and self.reward_model is None:
            raise ValueError("rewards: one says model: trained, but there is no reward_model section; add one")
        if self.reward_model is not None and not trained:
            raise ValueError(
                "reward_model: no reward says model: trained, so nothing would use it; add one or leave it out"
            )
        self._engine_agrees()
        num_rows = self.rollouts.prompts_per_iteration * self.rollouts.samples_per_prompt
        if self.ppo.num_minibatches > num_rows:
            raise ValueError(
                f"ppo.num_minibatches={self.ppo.num_minibatches}: an iteration has {num_rows} rollouts "
                "(rollouts.prompts_per_iteration × rollouts.samples_per_prompt), so some would be empty; lower it"
            )
        if self.rollouts.shards > self.rollouts.prompts_per_iteration:
            raise ValueError(
                f"rollouts.shards={self.rollouts.shards}: more than rollouts.prompts_per_iteration="
                f"{self.rollouts.prompts_per_iteration}, so some would be empty; lower it"
            )
        rewards = {"rewards": self.rewards, "evaluation.held_out_rewards": self.evaluation.held_out_rewards}
        for field, of_field in rewards.items():
            for name, reward in of_field.items():
                if reward.code:
                    raise ValueError(f"{field}: {name}.code is filled in when the run starts; remove it")
        if self.reward_model is not None and not self.data.preferences:
            raise ValueError("data.preferences: a reward model needs preferences to train on; name a source")
        if self.warm_up is not None and not self.data.texts:
            raise ValueError("data.texts: a warm-up needs texts to train on; name a source")
        if self.model.from_scratch is not None and not self.data.texts:
            raise ValueError("data.texts: a model from scratch needs texts for its tokenizer; name a source")
        if shared := set(self.rewards) & set(self.evaluation.held_out_rewards):
            raise ValueError(
                f"evaluation.held_out_rewards: {sorted(shared)[0]} is a training reward too; name it differently"
            )
        known: list[str] = []
        for field, of_field in rewards.items():
            for name in of_field:
                if not name.isidentifier():
                    raise ValueError(
                        f"{field}: the name {name!r} becomes part of a column's name; use letters, digits and _"
                    )
            known += of_field
            if (why := collision(known)) is not None:
                raise ValueError(f"{field}: {why}")
        if any(reward.is_trained_in_run for reward in self.evaluation.held_out_rewards.values()):
            raise ValueError(
                "evaluation.held_out_rewards: the trained reward model is not held out; name another model"
            )
        if not any(source.from_round == 1 for source in self.data.prompts):
            raise ValueError("data.prompts: no source counts from round 1 on; give one from_round: 1")
        if self.reward_model is not None and not any(source.from_round == 1 for source in self.data.preferences):
            raise ValueError("data.preferences: no source counts from round 1 on; give one from_round: 1")
        return self

    def _engine_agrees(self) -> None:
        rollouts, sampling = self.rollouts, self.rollouts.sampling
        if ENGINES[rollouts.engine].is_the_trainer:
            others = " or ".join(name for name, engine in ENGINES.items() if not engine.is_the_trainer)
            for path in OF_OTHER_ENGINES if rollouts.lag else (*OF_OTHER_ENGINES, *OF_OTHER_SAMPLERS):
                section, name = path.split(".")
                value = getattr(getattr(self, section), name)
                if value != default_of(type(getattr(self, section)), name):
                    shown = list(value) if isinstance(value, tuple) else value
                    own = f"rollouts.engine: {rollouts.engine} does not use it"
                    raise ValueError(f"{path}={shown}: {own}; leave it out, or say {others}")
        elif sampling.temperature != 1 and (sampling.top_p < 1 or sampling.top_k > 0):
            raise ValueError(
                f"rollouts.sampling.temperature={sampling.temperature}: rollouts.engine: {rollouts.engine} gives "
                "log-probabilities before temperature, top_p and top_k, or after all three, and those after temperature "
                "alone are needed; set it to 1, or leave top_p and top_k out"
            )

    def needs_hub(self) -> bool:
        """Whether a model or data set is named that is no local directory."""
        names = [self.model.policy, self.reward_model and self.reward_model.base]
        names += [self.model.critic] if self.model.names_critic else []
        names += [r.external_model for r in (*self.rewards.values(), *self.evaluation.held_out_rewards.values())]
        sources = (*self.data.prompts, *self.data.held_out_prompts, *self.data.preferences, *self.data.texts)
        return any(name and needs_hub(name) for name in names) or any(s.dataset for s in sources)


def default_of(config_type: Any, name: str) -> Any:
    """The default of a field of a configuration class."""
    fields = config_type.model_fields if issubclass(config_type, BaseModel) else config_type.__dataclass_fields__
    return fields[name].default
