"""Stage: what speaks against believing the score: rewards held out of training, length, repetition.

Nothing that trains reads its output, so that another held-out reward costs no training again.
"""

import math
from collections.abc import Mapping

from tasks.config import AuditRolloutsConfig
from tasks.contract import StageContext, StageOutput
from tasks.metrics import (
    correlation,
    correlation_stderr,
    distinct_metric,
    distinct_share,
    gain,
    lead,
    mean_metric,
    mean_stderr,
    moments,
    with_stderr,
)
from tasks.models import Models
from tasks.scoring import score_rows
from tasks.store import (
    HELD_OUT,
    Ref,
    audit_schema,
    concatenate,
    read_dataset,
    read_json,
    table_of,
    write_dataset,
    write_json,
)

MOMENTS_FILE = "moments.json"
REPETITION_LENGTHS = (1, 2, 3)


def audit_rollouts(
    context: StageContext,
    config: AuditRolloutsConfig,
    *,
    scored: list[Ref],
    policy: Ref,
    external: Mapping[str, Ref],
    baseline: Ref | None,
) -> StageOutput:
    """Score an iteration's rollouts by what training never sees, and hold that against the score that it follows.

    ``baseline`` is the audit of the round's first iteration, None in that one itself.
    """
    table = concatenate([read_dataset(ref.directory / "rollouts") for ref in scored])
    held_out = score_rows(
        Models(context, config.access),
        table,
        config.held_out_rewards,
        policy=policy,
        reward_model=None,
        external=external,
        held_out=config.held_out_rewards,
    )
    scores: list[float] = table.column("score").to_pylist()
    responses: list[list[int]] = table.column("response_token_ids").to_pylist()
    prompts: list[str] = table.column("prompt_id").to_pylist()
    bigrams = [distinct_share(response, 2) for response in responses]
    rows = zip(table.column("rollout_id").to_pylist(), bigrams, *held_out.values(), strict=True)
    write_dataset(context.output / "audit", table_of(list(rows), audit_schema(list(held_out))))

    now = {"score": moments(scores), **{f"{HELD_OUT}{name}": moments(own) for name, own in held_out.items()}}
    start = now if baseline is None else read_json(baseline.directory / MOMENTS_FILE)
    metrics = {"audit/length_correlation": correlation(scores, [len(response) for response in responses])}
    for n in REPETITION_LENGTHS:
        metrics |= distinct_metric(f"audit/distinct_{n}", responses, n, prompts)
    for name, own in held_out.items():
        metrics |= mean_metric(f"audit/{name}", own, prompts)
        follows = correlation(scores, own)
        metrics |= with_stderr(f"audit/{name}_correlation", follows, correlation_stderr(follows, prompts))
        key = f"{HELD_OUT}{name}"
        stderr = mean_stderr(lead(scores, own, score=start["score"], other=start[key]), prompts)
        now[key]["lead_stderr"] = stderr or 0.0
        metrics[f"audit/{name}_gain"] = gain(now[key], start[key])
        ahead = gain(now["score"], start["score"]) - metrics[f"audit/{name}_gain"]
        # The first iteration is not compared with itself by chance: its gap is exactly 0.
        spread = None if baseline is None or stderr is None else math.hypot(stderr, start[key]["lead_stderr"])
        metrics |= with_stderr(f"audit/{name}_gap", ahead, spread)
    write_json(context.output / MOMENTS_FILE, now)
    return StageOutput(rows=table.num_rows, metrics=metrics)
