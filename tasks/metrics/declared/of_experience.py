"""What is logged of an iteration's rollouts, their scores, and the advantages made of them."""

from tasks.metrics.declared.metric import BY_TOKENS, LAST, MAX, Limit, Metric, Range, Warns, std_around
from tasks.metrics.declared.of_run import HEALTH_WARNINGS

OF_ROLLOUTS = (
    Metric(
        "rollouts/response_length",
        "tokens",
        "mean number of tokens, E T, EOS included",
        Range(words="steady"),
        "rising with the score: the reward likes length",
        warns=Warns(below=Limit(of_reference=0.5)),
        has_stderr=True,
    ),
    Metric(
        "rollouts/empty_share",
        "share",
        "share of responses that are white space at most",
        Range(words="0"),
        "lower learning rate; a reward that pays for silence",
        warns=Warns(above=Limit(0.05, of_reference=1.0)),
        has_stderr=True,
    ),
    Metric(
        "rollouts/length_cut_share",
        "share",
        "share of responses cut off by `max_new_tokens`",
        Range(high=0.2, words="or as the task has it"),
        "more tokens, or a reward for stopping",
    ),
    Metric(
        "rollouts/engine_logprob_difference",
        "nats per token",
        "Eₜ |log π − log π_engine|, where another engine sampled",
        Range(high=1e-4, words="in bfloat16 below 0.03"),
        "a precision of its own, or other weights",
        BY_TOKENS,
    ),
    Metric(
        "rollouts/engine_logprob_max_difference",
        "nats per token",
        "the largest |log π − log π_engine| of a token, where another engine sampled",
        Range(high=1e-3, words="in bfloat16 below 2"),
        "a precision of its own, or other weights",
        MAX,
    ),
    HEALTH_WARNINGS,
)

OF_SCORES = (
    Metric("score/mean", "score", "E of the weighted sum of rewards", Range(words="rises"), "see `update/…`"),
    Metric(
        "score/std",
        "score",
        "standard deviation of the weighted sum of rewards",
        combines=std_around("score/mean"),
    ),
    Metric(
        "score/<reward>",
        "score",
        "E of one component, unweighted",
        Range(words="rises with the sum"),
        "falls: the mixture trades it away",
    ),
)

AWAY_FROM_REFERENCE = "higher `advantages.kl_coef`, lower learning rate"
NEAR_EACH_OTHER = Range(words="values and returns near each other")
CRITIC_LAGS = "the critic lags: higher `critic_learning_rate`"

OF_ADVANTAGES = (
    Metric(
        "kl/mean",
        "nats per response",
        "E Σₜ KLₜ by `advantages.kl_estimator`: with k1, KLₜ = log π − log π_ref",
        Range(0, 30, "rises slowly"),
        AWAY_FROM_REFERENCE,
    ),
    Metric("kl/per_token", "nats per token", "Eₜ KLₜ", Range(high=0.5), AWAY_FROM_REFERENCE, BY_TOKENS),
    Metric(
        "kl/coef",
        "score per nat",
        "β of this iteration",
        Range(words="as set, or near steady"),
        "falls or rises without end: another `kl_target`",
        LAST,
    ),
    Metric(
        "rewards/treated_score",
        "score",
        "E of the score as it counts: normalised, clipped, cut-off ones penalised, whitened, as far as asked for",
        Range(words="rises"),
    ),
    Metric(
        "rewards/mean",
        "score",
        "E Σₜ rₜ = treated score − β · KL",
        Range(words="rises"),
        "falls with a high `approx_kl`: lower learning rate; else, while the score rises: β too large",
        warns=Warns(when="when it falls for three iterations, by three standard errors in all"),
        has_stderr=True,
    ),
    Metric(
        "advantages/std_before_whitening",
        "score",
        "standard deviation of A",
        Range(0.1, 3),
        "near 0: all responses score alike",
    ),
    Metric(
        "advantages/excluded_share",
        "share",
        "share of the responses left out of the update, with `length_cut.exclude`",
        Range(high=0.5),
        "few are left to learn from: a higher `max_new_tokens`",
    ),
    Metric("values/mean", "score", "Eₜ V", NEAR_EACH_OTHER, CRITIC_LAGS, BY_TOKENS),
    Metric("returns/mean", "score", "Eₜ R", NEAR_EACH_OTHER, CRITIC_LAGS, BY_TOKENS),
    HEALTH_WARNINGS,
)
