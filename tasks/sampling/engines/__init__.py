"""The engines that sample, behind one interface, a file each: our own, a vLLM server, vLLM in process.

``ENGINES`` in ``tasks.config`` lists them; each is imported where a stage samples by it.
"""

from tasks.sampling.engines.agreement import PROOF_PROMPTS, engine_differences, require_same_policy
from tasks.sampling.engines.interface import LoadedPolicy, TokenSampler, open_engine

__all__ = [
    "PROOF_PROMPTS",
    "LoadedPolicy",
    "TokenSampler",
    "engine_differences",
    "open_engine",
    "require_same_policy",
]
