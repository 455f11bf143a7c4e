"""The settings of each stage, and of what stages share: pydantic alone, so that a configuration is checked at once."""

from tasks.config.advantages import AdvantagesConfig, Algorithm, ComputeAdvantagesConfig, LengthCutConfig
from tasks.config.base import StageConfig
from tasks.config.critic_pretraining import CriticPretrainingConfig, CriticPretrainingStageConfig
from tasks.config.data import DataConfig, FromScratchConfig, PrepareDataConfig, Source, parse_import_path
from tasks.config.decided import completed, decided, decided_precision
from tasks.config.engines import ENGINES, Engine, SamplingEngine, require_available
from tasks.config.evaluation import AuditRolloutsConfig, EvaluatePolicyConfig, EvaluationConfig, ReportRoundConfig
from tasks.config.execution import ExecutionConfig
from tasks.config.health import HealthConfig
from tasks.config.model_access import AdapterConfig, ModelAccess
from tasks.config.model_checks import ADAPTER_CONFIG, ModelChecks, needs_hub
from tasks.config.reward_model import RewardModelConfig, TrainRewardModelConfig
from tasks.config.reward_names import collision
from tasks.config.rewards import (
    NO_KIND,
    REWARD_KINDS,
    TRAINED,
    RewardConfig,
    Rewards,
    ScoreRolloutsConfig,
)
from tasks.config.rollouts import GenerateRolloutsConfig, RolloutsConfig
from tasks.config.update import OptimizersConfig, UpdatePolicyConfig
from tasks.config.warm_up import WarmUpConfig, WarmUpStageConfig
from tasks.config.yaml_text import YAMLError, read_yaml, write_yaml

__all__ = [
    "ADAPTER_CONFIG",
    "ENGINES",
    "NO_KIND",
    "REWARD_KINDS",
    "TRAINED",
    "AdapterConfig",
    "AdvantagesConfig",
    "Algorithm",
    "AuditRolloutsConfig",
    "ComputeAdvantagesConfig",
    "CriticPretrainingConfig",
    "CriticPretrainingStageConfig",
    "DataConfig",
    "Engine",
    "EvaluatePolicyConfig",
    "EvaluationConfig",
    "ExecutionConfig",
    "FromScratchConfig",
    "GenerateRolloutsConfig",
    "HealthConfig",
    "LengthCutConfig",
    "ModelAccess",
    "ModelChecks",
    "OptimizersConfig",
    "PrepareDataConfig",
    "ReportRoundConfig",
    "RewardConfig",
    "RewardModelConfig",
    "Rewards",
    "RolloutsConfig",
    "SamplingEngine",
    "ScoreRolloutsConfig",
    "Source",
    "StageConfig",
    "TrainRewardModelConfig",
    "UpdatePolicyConfig",
    "WarmUpConfig",
    "WarmUpStageConfig",
    "YAMLError",
    "collision",
    "completed",
    "decided",
    "decided_precision",
    "needs_hub",
    "parse_import_path",
    "read_yaml",
    "require_available",
    "write_yaml",
]
