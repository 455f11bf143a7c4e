"""Whether an engine samples from the trainer's policy: only then are its log-probabilities the trainer's up to rounding."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ppo_core import Ragged, RolloutBatch, SamplingConfig, derive_seed
from tasks.contract import Gates, StageContext
from tasks.errors import ServerError
from tasks.models import pick_device, pick_dtype
from tasks.sampling.engines.interface import TokenSampler
from tasks.store import SAMPLING_LOGPROBS, Table, ragged_column

PROOF_PROMPTS, PROOF_TOKENS = 8, 16
"""What an engine is tried on: so many tokens after each of so many prompts."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.03}
"""Nats a token that two programs for one model may lie apart: in float32 at any token, in bfloat16 on average."""
_LIMIT = "max_engine_difference"


def require_same_policy(
    engine: TokenSampler,
    name: str,
    prompts: Ragged,
    logprobs: Callable[[RolloutBatch, float], torch.Tensor],
    *,
    sampling: SamplingConfig,
    context: StageContext,
    dtype: torch.dtype,
) -> None:
    """Have an engine sample a few tokens, and refuse it unless their log-probabilities are the trainer's up to rounding.

    ``name`` is what it is called then, and ``logprobs(batch, temperature)`` are the trainer's. The prompts are the same at
    each push of a run, so that an engine which remembers them under weights of before shows it. Nothing that is drawn here
    goes into the run.
    """
    whole = replace(
        sampling,
        max_new_tokens=min(PROOF_TOKENS, sampling.max_new_tokens),
        top_p=1.0,
        top_k=0,
        stop_token_ids=(),
        suppress_token_ids=(),
    )
    batch = engine.draw(
        prompts,
        samples_per_prompt=1,
        sampling=whole,
        stop_strings=(),
        should_stop=None,
        seeds=[derive_seed(context.run_seed, "proof", i) for i in range(len(prompts))],
        on_rows=lambda *_: None,
    )
    engines = batch.token_columns["logprobs"].double()
    difference = (engines - logprobs(batch, sampling.temperature)).abs()
    if sampling.temperature != 1:
        # vLLM's are those before temperature unless it is told otherwise, and nothing in its answer says which.
        untempered = (engines - logprobs(batch, 1.0)).abs()
        if untempered.mean() < difference.mean() / 2:
            raise ServerError(
                f"rollouts.sampling.temperature={sampling.temperature}: {name} gives log-probabilities before "
                "temperature; start the server with --logprobs-mode processed_logprobs"
            )
    is_exact = dtype == torch.float32
    Gates(context).at_most(
        _LIMIT,
        float(difference.max() if is_exact else difference.mean()),
        limit(context, dtype),
        what=(
            f"the {'largest' if is_exact else 'mean'} difference between the engine's log-probabilities and the trainer's, "
            f"in nats, over {len(difference)} tokens tried before sampling"
        ),
        advice=(
            f"{name} does not hold this policy, or computes in another precision: give it the trainer's dtype "
            f"(--dtype {str(dtype).removeprefix('torch.')}), let no other run use it, and restart it"
        ),
    )


def limit(context: StageContext, dtype: torch.dtype) -> float:
    """``health.max_engine_difference``, by default what rounding allows."""
    return context.health.max_engine_difference or ROUNDING[dtype]


def engine_differences(rollouts: Table, context: StageContext) -> dict[str, float]:
    """How far the log-probabilities of the engine that sampled lie from the trainer's; nothing where that is the trainer.

    Refuses what cannot come from the same weights.
    """
    if SAMPLING_LOGPROBS not in rollouts.column_names:
        return {}
    ours, engines = (ragged_column(rollouts, name, torch.float64).values for name in ("logprobs", SAMPLING_LOGPROBS))
    difference = (ours - engines).abs()
    gates = Gates(context)
    gates.at_most(
        _LIMIT,
        float(difference.mean()),
        limit(context, pick_dtype(context.execution, pick_device(context.execution))),
        what="the difference between the engine's log-probabilities and the trainer's, in nats a token,",
        advice="the engine samples from another model: look at what the server serves, and whether others use it",
    )
    return {
        "rollouts/engine_logprob_difference": float(difference.mean()),
        "rollouts/engine_logprob_max_difference": float(difference.max()),
        "health/warnings": float(len(gates.warnings)),
    }
