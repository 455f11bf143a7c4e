"""Stage: what speaks against believing the score: rewards held out of training, length, repetition.

Nothing that trains reads its output, so that another held-out reward costs no training again.
"""

import statistics
from collections.abc import Sequence

from tasks.rewards import Rewards
from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref

MOMENTS_FILE = "moments.json"
REPETITION_LENGTHS = (1, 2, 3)


class AuditRolloutsConfig(StageConfig):
    """What the stage reads."""

    held_out_rewards: Rewards
    trust_remote_code: bool = False


@stage(version="3", config=AuditRolloutsConfig)
def audit_rollouts(
    context: StageContext,
    config: AuditRolloutsConfig,
    *,
    scored: list[Ref],
    policy: Ref,
    external: list[Ref],
    baseline: Ref | None,
) -> StageOutput:
    """Score an iteration's rollouts by what training never sees, and hold that against the score that it follows.

    ``baseline`` is the audit of the round's first iteration, None in that one itself.
    """
    from tasks.schemas import HELD_OUT, audit, concatenate, table_of
    from tasks.scoring import score_rows
    from tasks.store import read_dataset, read_json, write_dataset, write_json

    table = concatenate([read_dataset(ref.directory / "rollouts") for ref in scored])
    held_out = score_rows(
        context,
        table,
        config.held_out_rewards,
        policy=policy,
        reward_model=None,
        external=external,
        trust_remote_code=config.trust_remote_code,
    )
    scores: list[float] = table.column("score").to_pylist()
    responses: list[list[int]] = table.column("response_token_ids").to_pylist()
    distinct = {n: [distinct_share(response, n) for response in responses] for n in REPETITION_LENGTHS}
    rows = zip(table.column("rollout_id").to_pylist(), distinct[2], *held_out.values(), strict=True)
    write_dataset(context.output / "audit", table_of(list(rows), audit(list(held_out))))

    now = {"score": moments(scores), **{f"{HELD_OUT}{name}": moments(own) for name, own in held_out.items()}}
    write_json(context.output / MOMENTS_FILE, now)
    start = now if baseline is None else read_json(baseline.directory / MOMENTS_FILE)
    metrics = {"audit/length_correlation": correlation(scores, [len(response) for response in responses])}
    for n, shares in distinct.items():
        if known := [share for share in shares if share is not None]:
            metrics[f"audit/distinct_{n}"] = statistics.fmean(known)
    score_gain = gain(now["score"], start["score"])
    for name, own in held_out.items():
        metrics[f"audit/{name}"] = statistics.fmean(own)
        metrics[f"audit/{name}_correlation"] = correlation(scores, own)
        metrics[f"audit/{name}_gap"] = score_gain - gain(now[f"{HELD_OUT}{name}"], start[f"{HELD_OUT}{name}"])
    return StageOutput(rows=table.num_rows, metrics=metrics)


def distinct_share(tokens: Sequence[int], n: int) -> float | None:
    """Distinct n-grams of a response as a share of its n-grams: 1 where nothing repeats; None where there is none.

    Li et al. 2016, arXiv:1510.03055, section 5.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two does not vary, since nothing then follows the other."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return 0.0
    return statistics.correlation(xs, ys)


def moments(xs: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(xs), "std": statistics.stdev(xs) if len(xs) > 1 else 0.0}


def gain(now: dict[str, float], start: dict[str, float]) -> float:
    """How far a mean has moved, in the standard deviations over responses that it started with; 0 where there was none."""
    return (now["mean"] - start["mean"]) / start["std"] if start["std"] > 0 else 0.0
