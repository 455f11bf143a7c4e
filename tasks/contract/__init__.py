"""The stage contract: what a stage is, what it may know, how its output is found or made, and which failures are retried."""

from tasks.contract.call import StageCall
from tasks.contract.execution import NO_LIMITS, Together, execute, recover, remade, repeat, run_stage
from tasks.contract.failures import (
    ElsewhereError,
    Kind,
    StageError,
    classify,
    describe,
    is_a_service_s,
    is_of_users_code,
    worth_retrying,
)
from tasks.contract.gates import Gates
from tasks.contract.preview import PreviewConfig, TrialConfig
from tasks.contract.resident import ResidentModels
from tasks.contract.stage import StageContext, StageOutput, stage_function

__all__ = [
    "NO_LIMITS",
    "ElsewhereError",
    "Gates",
    "Kind",
    "PreviewConfig",
    "ResidentModels",
    "StageCall",
    "StageContext",
    "StageError",
    "StageOutput",
    "Together",
    "TrialConfig",
    "classify",
    "describe",
    "execute",
    "is_a_service_s",
    "is_of_users_code",
    "recover",
    "remade",
    "repeat",
    "run_stage",
    "stage_function",
    "worth_retrying",
]
