"""What is logged of how far a score is to be believed: in each iteration, and on held-out prompts in each round."""

from tasks.metrics.declared.metric import Limit, Metric, Range, Warns, std_around

LEAST_CORRELATION = 0.3
"""Of a score with what is wanted, within a sample of responses."""
STDS = "standard deviations"
UNLESS_IT_FOLLOWS = f"unless the held-out reward rises by {LEAST_CORRELATION} of what the score does"
REPETITION_LIMIT = Warns(below=Limit(of_reference=0.9), when="unless all held-out rewards have risen")
REPETITION_PAYS = "falls: repetition pays; higher `kl_coef`, a penalty for it"
NEAR_EACH_OTHER = Range(words="policy and reference near each other")


def distinct(n: int) -> str:
    return f"E (distinct {n}-grams of a response / its {n}-grams)"


OF_AUDIT = (
    Metric(
        "audit/length_correlation",
        "correlation",
        "Pearson correlation of score and T within an iteration",
        Range(-0.3, 0.3),
        "the reward likes length: a penalty, `gamma` below 1, another reward model",
    ),
    Metric("audit/distinct_1", "share", distinct(1), Range(words="steady"), REPETITION_PAYS, has_stderr=True),
    Metric(
        "audit/distinct_2",
        "share",
        distinct(2),
        Range(low=0.8, words="steady"),
        REPETITION_PAYS,
        warns=REPETITION_LIMIT,
        has_stderr=True,
    ),
    Metric("audit/distinct_3", "share", distinct(3), Range(low=0.8, words="steady"), REPETITION_PAYS, has_stderr=True),
    Metric(
        "audit/<reward>",
        "score",
        "E of a reward held out of training",
        Range(words="rises with the score"),
        "falls: the score is being gamed; stop at its peak",
        has_stderr=True,
    ),
    Metric(
        "audit/<reward>_correlation",
        "correlation",
        "Pearson correlation of score and held-out reward",
        Range(low=LEAST_CORRELATION, words="steady"),
        "falls towards 0: the score no longer means it",
        warns=Warns(
            below=Limit(LEAST_CORRELATION),
            when="in the run's first iteration, which is the reference's, where the score is the reward model's",
        ),
        has_stderr=True,
    ),
    Metric(
        "audit/<reward>_gain",
        STDS,
        "Δ held-out / its std, since the round's first iteration",
        Range(words="rises with the score"),
        "see `audit/<reward>_gap`",
    ),
    Metric(
        "audit/<reward>_gap",
        STDS,
        "(Δ score / its std) − (Δ held-out / its std), since the round's first iteration",
        Range(high=1),
        "grows without end: reward hacking; higher `kl_coef`, fewer iterations, new preferences",
        warns=Warns(above=Limit(1.0), when=UNLESS_IT_FOLLOWS),
        has_stderr=True,
    ),
)

ABOVE_REFERENCE = Range(low=0)
GAMED = "held-out rewards fall while the score rises: the reward is being gamed"
AS_ROLLOUTS_LENGTH = "see `rollouts/response_length`"
AS_ROLLOUTS_EMPTY = "see `rollouts/empty_share`"
AS_AUDIT_DISTINCT = "see `audit/distinct_2`"
OF_POLICY, OF_REFERENCE = "on held-out prompts, policy", "on held-out prompts, reference"
BLANK = "share of responses that are white space at most"

OF_EVALUATION = (
    Metric("evaluation/score", "score", f"E of the score {OF_POLICY}", Range(words="rises")),
    Metric("evaluation/<reward>", "score", f"E of the reward {OF_POLICY}", Range(words="rises")),
    Metric("evaluation/reference_score", "score", f"E of the score {OF_REFERENCE}"),
    Metric(
        "evaluation/reference_score_std",
        "score",
        f"standard deviation of the score {OF_REFERENCE}",
        combines=std_around("evaluation/reference_score"),
    ),
    Metric("evaluation/reference_<reward>", "score", f"E of the reward {OF_REFERENCE}"),
    Metric(
        "evaluation/reference_<reward>_std",
        "score",
        f"standard deviation of the reward {OF_REFERENCE}",
        combines=std_around("evaluation/reference_<reward>"),
    ),
    Metric(
        "evaluation/score_gain",
        STDS,
        "(policy − reference) / standard deviation of the reference, of the score",
        ABOVE_REFERENCE,
        GAMED,
    ),
    Metric(
        "evaluation/<reward>_gain",
        STDS,
        "(policy − reference) / standard deviation of the reference, of the reward",
        ABOVE_REFERENCE,
        GAMED,
    ),
    Metric(
        "evaluation/<reward>_gap",
        STDS,
        "gain of the score − gain of a held-out reward",
        Range(high=1),
        "the score is being gamed",
        warns=Warns(above=Limit(1.0), when=UNLESS_IT_FOLLOWS),
        has_stderr=True,
    ),
    Metric(
        "evaluation/reference_<reward>_correlation",
        "correlation",
        "Pearson correlation of the reward models' part of the score with a held-out reward, on the reference's responses",
        Range(low=LEAST_CORRELATION),
        "the reward model has not learned it: more or better preferences",
        warns=Warns(below=Limit(LEAST_CORRELATION)),
        has_stderr=True,
    ),
    Metric(
        "evaluation/kl",
        "nats per response",
        "E Σₜ (log π − log π_ref) on the policy's responses",
        Range(words="as `kl/mean`"),
    ),
    Metric(
        "evaluation/response_length",
        "tokens",
        f"E T {OF_POLICY}",
        NEAR_EACH_OTHER,
        AS_ROLLOUTS_LENGTH,
        warns=Warns(below=Limit(of_reference=0.5)),
        has_stderr=True,
    ),
    Metric(
        "evaluation/reference_response_length",
        "tokens",
        f"E T {OF_REFERENCE}",
        NEAR_EACH_OTHER,
        AS_ROLLOUTS_LENGTH,
        has_stderr=True,
    ),
    Metric(
        "evaluation/empty_share",
        "share",
        f"{BLANK}, {OF_POLICY}",
        Range(words="0"),
        AS_ROLLOUTS_EMPTY,
        warns=Warns(above=Limit(0.05, of_reference=1.0)),
        has_stderr=True,
    ),
    Metric(
        "evaluation/reference_empty_share",
        "share",
        f"{BLANK}, {OF_REFERENCE}",
        Range(words="0"),
        AS_ROLLOUTS_EMPTY,
        has_stderr=True,
    ),
    Metric(
        "evaluation/distinct_2",
        "share",
        f"{distinct(2)} {OF_POLICY}",
        NEAR_EACH_OTHER,
        AS_AUDIT_DISTINCT,
        warns=REPETITION_LIMIT,
        has_stderr=True,
    ),
    Metric(
        "evaluation/reference_distinct_2",
        "share",
        f"{distinct(2)} {OF_REFERENCE}",
        NEAR_EACH_OTHER,
        AS_AUDIT_DISTINCT,
        has_stderr=True,
    ),
)
