"""The engines that sample, behind one interface, a file each: our own, a vLLM server, vLLM in process."""

from tasks.sampling.engines.agreement import PROOF_PROMPTS, engine_differences, require_same_policy
from tasks.sampling.engines.builtin import BuiltinSampler
from tasks.sampling.engines.interface import TokenSampler
from tasks.sampling.engines.policy_files import PolicyFiles, tied_weights

__all__ = [
    "PROOF_PROMPTS",
    "BuiltinSampler",
    "PolicyFiles",
    "TokenSampler",
    "engine_differences",
    "require_same_policy",
    "tied_weights",
]
