"""The plan of a run: its stages in order, each with its committed output or the reason why it would execute."""

from flows.plan.attempts import Attempt, attempts_of, find_attempt
from flows.plan.calls import (
    external_models,
    externals_of,
    find_model,
    model_checks,
    named_models,
    stage_call,
    with_code_digests,
)
from flows.plan.changed_data import KINDS, PREPARE, identity, require_same_data, require_unchanged
from flows.plan.plan import forced_by, glance_at, make_plan, plan_of, what_is_seen
from flows.plan.planned import Plan, Planned
from flows.plan.reasons import changed_fields

__all__ = [
    "KINDS",
    "PREPARE",
    "Attempt",
    "Plan",
    "Planned",
    "attempts_of",
    "changed_fields",
    "external_models",
    "externals_of",
    "find_attempt",
    "find_model",
    "forced_by",
    "glance_at",
    "identity",
    "make_plan",
    "model_checks",
    "named_models",
    "plan_of",
    "require_same_data",
    "require_unchanged",
    "stage_call",
    "what_is_seen",
    "with_code_digests",
]
