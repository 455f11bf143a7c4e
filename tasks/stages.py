"""The table of stages: what each is, reads, writes and shows. Whatever lists stages asks it.

It names settings alone, never the functions that execute them: a run is planned, looked at and told of without torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.config import (
    AuditRolloutsConfig,
    ComputeAdvantagesConfig,
    CriticPretrainingStageConfig,
    EvaluatePolicyConfig,
    ExecutionConfig,
    GenerateCandidatesConfig,
    GenerateRolloutsConfig,
    PrepareDataConfig,
    ReportRoundConfig,
    ScoreRolloutsConfig,
    StageConfig,
    TrainRewardModelConfig,
    UpdatePolicyConfig,
    WarmUpStageConfig,
    completed,
)
from tasks.config.decided import ORDER_OF_SUMS, PRECISION

Headline = tuple[str, str, int]
"""A metric, its name in a line of a terminal, and its digits there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: what the contract, the plan and whoever shows it need to know."""

    name: str
    version: str
    """Changed when, and only when, the same inputs and settings must give another output from now on."""
    config: type[StageConfig]
    belongs_to: Literal["round", "iteration", "shard"]
    inputs: tuple[str, ...]
    """By name, as its function takes them; committed outputs, lists of them, or models from outside. What adapters are over
    is in its context."""
    uses_models: bool = True
    """Whether forward passes decide what it writes, so that their precision is part of the recipe."""
    trains: bool = False
    """Whether it trains a model, which several processes may do together."""
    data_sets: tuple[str, ...] = ()
    """The data sets in its output; those of rollouts have the columns of the stages before it."""
    is_asked_for: bool = False
    """Whether it is no part of a run's chain, and executes where somebody asks for what it makes."""
    is_replayed: bool = False
    """Whether ``rounds replay`` makes it again."""
    models: tuple[str, ...] = ()
    """The models in its output that can be exported."""
    headlines: tuple[Headline, ...] = ()

    @property
    def execution(self) -> tuple[str, ...]:
        """The settings of ``ExecutionConfig`` that are part of its recipe."""
        return (PRECISION if self.uses_models else ()) + (ORDER_OF_SUMS if self.trains else ())


@dataclass(slots=True)
class Stages:
    """The stages in the order in which a run has them."""

    rows: tuple[Stage, ...]

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.rows if stage.name == name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.rows)

    def settings_of(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of a recipe, of which it holds those that differ from their default."""
        stage = self[recipe["stage"]]
        settings = completed(recipe["settings"], stage.config)
        if stage.execution:
            given = {name: settings[name] for name in stage.execution if name in settings}
            settings |= {name: completed(given, ExecutionConfig)[name] for name in stage.execution}
        return settings

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.rows)

    @property
    def of_a_run(self) -> tuple[str, ...]:
        """Those that a run's chain has."""
        return tuple(stage.name for stage in self.rows if not stage.is_asked_for)

    @property
    def of_an_iteration(self) -> tuple[str, ...]:
        """What an iteration consists of, in order."""
        return tuple(stage.name for stage in self.rows if stage.belongs_to != "round" and not stage.is_asked_for)

    def with_data_set(self, name: str) -> tuple[str, ...]:
        """Whose outputs hold a data set of this name, the ones with the most columns first."""
        return tuple(stage.name for stage in reversed(self.rows) if name in stage.data_sets)

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The names of all data sets that stages write."""
        return tuple(dict.fromkeys(name for stage in self.rows for name in stage.data_sets))

    @property
    def replayed(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.rows if stage.is_replayed)

    def that_makes(self, model: str) -> str:
        """The stage whose output has a model of this name that is a run's result."""
        return next(stage.name for stage in self.rows if model in stage.models)


STAGES = Stages(
    (
        Stage(
            name="prepare_data",
            version="4",
            config=PrepareDataConfig,
            belongs_to="round",
            inputs=("base", "previous"),
            data_sets=("prompts", "held_out_prompts", "preferences", "held_out_preferences", "texts"),
            headlines=(
                ("data/prompts", "prompts", 0),
                ("data/preferences", "preferences", 0),
                ("data/texts", "texts", 0),
            ),
        ),
        Stage(
            name="warm_up",
            version="3",
            config=WarmUpStageConfig,
            trains=True,
            belongs_to="round",
            inputs=("base", "data"),
            headlines=(("warm_up/first_loss", "first loss", 2), ("warm_up/loss", "loss", 2)),
        ),
        Stage(
            name="train_reward_model",
            version="7",
            config=TrainRewardModelConfig,
            trains=True,
            belongs_to="round",
            inputs=("base", "reference", "data"),
            models=("reward_model",),
            data_sets=("held_out_pairs",),
            headlines=(("reward_model/accuracy", "accuracy", 3),),
        ),
        Stage(
            name="critic_pretraining",
            version="1",
            config=CriticPretrainingStageConfig,
            trains=True,
            belongs_to="round",
            inputs=("reference", "critic", "reward_model", "external", "data"),
            headlines=(
                ("critic_pretraining/explained_variance_before", "explained variance before", 2),
                ("critic_pretraining/explained_variance", "after", 2),
            ),
        ),
        Stage(
            name="generate_rollouts",
            version="3",
            config=GenerateRolloutsConfig,
            belongs_to="shard",
            inputs=("policy", "data"),
            data_sets=("rollouts",),
            headlines=(("rollouts/response_length", "length", 1),),
        ),
        Stage(
            name="generate_candidates",
            version="1",
            config=GenerateCandidatesConfig,
            belongs_to="iteration",
            inputs=("policy", "data"),
            data_sets=("candidates",),
            is_asked_for=True,
        ),
        Stage(
            name="score_rollouts",
            version="4",
            config=ScoreRolloutsConfig,
            belongs_to="shard",
            inputs=("rollouts", "policy", "reference", "critic", "reward_model", "external"),
            data_sets=("rollouts",),
            is_replayed=True,
            headlines=(("score/mean", "score", 3),),
        ),
        Stage(
            name="compute_advantages",
            version="3",
            config=ComputeAdvantagesConfig,
            belongs_to="iteration",
            inputs=("scored", "checkpoint"),
            uses_models=False,
            data_sets=("rollouts",),
            is_replayed=True,
            headlines=(("kl/mean", "KL", 3),),
        ),
        Stage(
            name="update_policy",
            version="4",
            config=UpdatePolicyConfig,
            trains=True,
            belongs_to="iteration",
            inputs=("experience", "policy", "critic", "reference"),
            is_replayed=True,
            models=("policy", "critic"),
            headlines=(("update/entropy", "entropy", 3), ("update/clipfrac", "clipped", 3)),
        ),
        Stage(
            name="audit_rollouts",
            version="3",
            config=AuditRolloutsConfig,
            belongs_to="iteration",
            inputs=("scored", "policy", "external", "baseline"),
            data_sets=("audit",),
            headlines=(("audit/length_correlation", "length correlation", 2),),
        ),
        Stage(
            name="evaluate_policy",
            version="3",
            config=EvaluatePolicyConfig,
            belongs_to="round",
            inputs=("policy", "reference", "reward_model", "external", "data"),
            data_sets=("evaluation",),
            headlines=(
                ("evaluation/score", "score", 3),
                ("evaluation/score_gain", "gain", 2),
                ("evaluation/kl", "KL", 2),
            ),
        ),
        Stage(
            name="report_round",
            version="5",
            config=ReportRoundConfig,
            belongs_to="round",
            inputs=(
                "rollouts",
                "scored",
                "experience",
                "checkpoints",
                "audits",
                "evaluation",
                "reward_model",
                "previous",
                "pretraining",
            ),
            uses_models=False,
        ),
    )
)
