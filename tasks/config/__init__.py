"""The settings of each stage, and of what stages share: pydantic alone, so that a configuration is checked at once."""

from tasks.config.advantages import AdvantagesConfig, Algorithm, ComputeAdvantagesConfig, LengthCutConfig
from tasks.config.base import Json, StageConfig
from tasks.config.data import DataConfig, FromScratchConfig, PrepareDataConfig, Source, parse_import_path
from tasks.config.decided import completed, decided, decided_execution
from tasks.config.engines import ENGINES, Engine, SamplingEngine, require_available, server_address, untested_vllm
from tasks.config.evaluation import AuditRolloutsConfig, EvaluatePolicyConfig, EvaluationConfig, ReportRoundConfig
from tasks.config.execution import ExecutionConfig, HealthConfig
from tasks.config.model_access import ADAPTER_CONFIG, AdapterConfig, ModelAccess, ModelChecks, needs_hub
from tasks.config.rewards import (
    NO_KIND,
    REWARD_KINDS,
    TRAINED,
    RewardConfig,
    Rewards,
    ScoreRolloutsConfig,
    collision,
)
from tasks.config.rollouts import GenerateCandidatesConfig, GenerateRolloutsConfig, RolloutsConfig
from tasks.config.training import (
    CriticPretrainingConfig,
    CriticPretrainingStageConfig,
    RewardModelConfig,
    TrainRewardModelConfig,
    WarmUpConfig,
    WarmUpStageConfig,
)
from tasks.config.update import OptimizersConfig, UpdatePolicyConfig

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
    "GenerateCandidatesConfig",
    "GenerateRolloutsConfig",
    "HealthConfig",
    "Json",
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
    "collision",
    "completed",
    "decided",
    "decided_execution",
    "needs_hub",
    "parse_import_path",
    "require_available",
    "server_address",
    "untested_vllm",
]
