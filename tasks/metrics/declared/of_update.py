"""What is logged of an update: what ``ppo_core.UpdateStats`` holds, and the learning rates.

An update's numbers are means over its minibatches, which have the same number of rows.
"""

from tasks.metrics.declared.metric import LAST, MAX, SUM, Limit, Metric, Range, Warns
from tasks.metrics.declared.of_run import HEALTH_WARNINGS

HIGH_APPROX_KL = 0.05
"""Nats a token above which an update is large enough to be the cause of what follows it."""
AS_SCHEDULED = Range(words="as scheduled")
AS_SET = Range(words="as set")
FAR_FROM_SAMPLER = "see `rollouts/engine_logprob_difference`; with `rollouts.lag` a smaller one, or lower learning rate"
OVER_THE_LIMIT = Range(words="below 10 × the limit")
LOWER_RATE = "lower learning rate"

OF_UPDATE = (
    Metric(
        "update/policy_loss",
        "advantage",
        "−Eₜ min(ratio · A, clipped ratio · A)",
        Range(words="small, negative on average"),
    ),
    Metric(
        "update/kl_loss",
        "nats per token",
        "KL in the loss before its weight, by its estimator, with `ppo.kl_loss_coef`",
        Range(high=0.5),
        "higher `kl_loss_coef`",
    ),
    Metric(
        "update/value_loss",
        "score²",
        "½ Eₜ (V − R)²; with `ppo.cliprange_value`, ½ Eₜ max((V − R)², (V clipped − R)²)",
        Range(words="falls"),
        "higher `critic_learning_rate`",
    ),
    Metric(
        "update/approx_kl",
        "nats per token",
        "k3 estimate of KL(π_old‖π)",
        Range(high=HIGH_APPROX_KL),
        "fewer epochs, lower learning rate",
        warns=Warns(above=Limit(0.1)),
        has_stderr=True,
    ),
    Metric("update/k1_kl", "nats per token", "the same by k1", Range(words="near `approx_kl`")),
    Metric(
        "update/clipfrac",
        "share",
        "share of tokens where the ratio clip binds",
        Range(0.02, 0.3),
        "above: lower learning rate; 0: higher",
    ),
    Metric(
        "update/value_clipfrac",
        "share",
        "share of tokens where the value clip binds; 0 without `ppo.cliprange_value`",
        Range(high=0.5),
        "larger `cliprange_value`, or none",
    ),
    Metric(
        "update/entropy",
        "nats per token",
        "Eₜ entropy of π",
        Range(words="falls slowly"),
        "collapses: lower learning rate, higher `kl_coef`",
    ),
    Metric("update/ratio_mean", "ratio", "Eₜ ratio", Range(0.95, 1.05), LOWER_RATE),
    Metric(
        "update/first_minibatch_ratio_deviation",
        "ratio",
        "max |ratio − 1| before the first step",
        Range(high=1e-4, words="in bfloat16 below 0.01"),
        "sampling and training disagree: dropout, precision",
        MAX,
    ),
    Metric(
        "update/importance_mean",
        "ratio",
        "Eₜ min(π_old / π_sampler, `importance_cap`), where another engine or, with `rollouts.lag`, an older policy sampled",
        Range(0.95, 1.05),
        FAR_FROM_SAMPLER,
    ),
    Metric(
        "update/importance_capped",
        "share",
        "share of tokens where that cap binds",
        Range(high=0.01, words="with a lag below 0.05"),
        FAR_FROM_SAMPLER,
    ),
    Metric(
        "update/sampling_approx_kl",
        "nats per token",
        "k3 estimate of KL(π_sampler‖π_old), where the two are not the same",
        Range(high=1e-3, words="with a lag below 0.1"),
        FAR_FROM_SAMPLER,
    ),
    Metric("update/grad_norm", "norm", "norm of the policy's gradient, before clipping", OVER_THE_LIMIT, LOWER_RATE),
    Metric(
        "update/critic_grad_norm", "norm", "norm of the critic's gradient, before clipping", OVER_THE_LIMIT, LOWER_RATE
    ),
    Metric(
        "update/explained_variance",
        "share",
        "1 − Var(R − V) / Var(R)",
        Range(words="rises towards 1"),
        "below 0: the critic is worse than a constant; train it longer",
        warns=Warns(below=Limit(0.0), when="after the third iteration of a round"),
        has_stderr=True,
    ),
    Metric("update/num_optimizer_steps", "steps", "steps of the policy's optimizer", AS_SET, combines=SUM),
    Metric("update/num_tokens", "tokens", "response tokens in the rollouts", AS_SET, combines=SUM),
    Metric(
        "update/policy_epochs",
        "epochs",
        "passes that the policy made",
        AS_SET,
        "fewer: `target_kl` stopped it; lower learning rate",
        SUM,
    ),
    Metric("update/learning_rate", "per step", "the policy's, of this iteration", AS_SCHEDULED, combines=LAST),
    Metric("update/critic_learning_rate", "per step", "the critic's, of this iteration", AS_SCHEDULED, combines=LAST),
    HEALTH_WARNINGS,
)
