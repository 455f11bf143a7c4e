"""What is logged before the first iteration: data, warm-up, reward model, critic."""

from tasks.metrics.declared.metric import LAST, SUM, Metric, Range, std_around
from tasks.metrics.declared.of_run import HEALTH_WARNINGS

AS_GIVEN = Range(words="as many as you gave")
LOOK_AT_DROPPED = "look at `data/dropped`"

OF_DATA = (
    Metric("data/prompts", "rows", "prompts to sample responses to", AS_GIVEN, LOOK_AT_DROPPED, SUM),
    Metric("data/held_out_prompts", "rows", "prompts that only evaluation uses", AS_GIVEN, LOOK_AT_DROPPED, SUM),
    Metric("data/preferences", "rows", "preferences that the reward model learns", AS_GIVEN, LOOK_AT_DROPPED, SUM),
    Metric(
        "data/held_out_preferences",
        "rows",
        "preferences that the reward model is measured on",
        AS_GIVEN,
        LOOK_AT_DROPPED,
        SUM,
    ),
    Metric("data/texts", "rows", "texts for the warm-up", AS_GIVEN, LOOK_AT_DROPPED, SUM),
    Metric(
        "data/dropped",
        "rows",
        "rows left out: equal responses, all ranks tied; with `data.on_bad_row: drop` bad and too long ones",
        Range(words="few"),
        "the stage says how many for which reason: a longer context; mend the data",
        SUM,
    ),
)

FALLS = Range(words="falls well below the first")
LONGER_WARM_UP = "more epochs, higher `warm_up.learning_rate`"

OF_WARM_UP = (
    Metric("warm_up/first_loss", "nats per token", "−Eₜ log π at the first step", FALLS, LONGER_WARM_UP, LAST),
    Metric("warm_up/loss", "nats per token", "−Eₜ log π, mean of the last tenth", FALLS, LONGER_WARM_UP, LAST),
    Metric(
        "warm_up/steps",
        "steps",
        "optimizer steps",
        Range(words="hundreds"),
        "smaller `batch_tokens`, more texts",
        SUM,
    ),
)

NEAR_EACH_OTHER = Range(words="the two near each other")
BY_LENGTH = "far apart: the model goes by length; balance the preferences, or shorten what is chosen"
SCORE_SPREAD = "a tiny std: the model does not tell responses apart"

OF_REWARD_MODEL = (
    Metric(
        "reward_model/steps",
        "steps",
        "optimizer steps, of `reward_model.batch_size` pairs each",
        Range(words="dozens or more"),
        "smaller `batch_size`, more epochs",
        SUM,
    ),
    Metric(
        "reward_model/loss",
        "nats",
        "−mean log σ(s⁺ − s⁻), each preference with equal weight, last steps",
        Range(high=0.69, words="which is ln 2"),
        "more epochs; check the labels",
        LAST,
    ),
    Metric(
        "reward_model/accuracy",
        "share",
        "share of held-out pairs with s⁺ > s⁻",
        Range(0.65, 0.9),
        "below: more data or a better base; near 1: a shortcut, look at lengths",
        LAST,
    ),
    Metric(
        "reward_model/accuracy_error",
        "share",
        "standard error of the accuracy, the pairs of one preference counted as one observation",
        Range(high=0.05),
        "more held-out preferences; an accuracy that does not exceed 0.5 by it stops the run "
        "(`health.min_reward_model_accuracy`)",
        LAST,
    ),
    Metric(
        "reward_model/accuracy_chosen_longer",
        "share",
        "accuracy for pairs whose chosen response has more tokens than the other",
        NEAR_EACH_OTHER,
        BY_LENGTH,
        LAST,
    ),
    Metric(
        "reward_model/accuracy_chosen_shorter",
        "share",
        "accuracy for pairs whose chosen response has fewer tokens than the other",
        NEAR_EACH_OTHER,
        BY_LENGTH,
        LAST,
    ),
    Metric(
        "reward_model/mean_margin",
        "raw score",
        "mean of s⁺ − s⁻ on held-out pairs",
        Range(0.5, 3),
        "very large: overfitted",
        LAST,
    ),
    Metric(
        "reward_model/calibration_error",
        "share",
        "expected calibration error of σ(s⁺ − s⁻), 10 bins",
        Range(high=0.1),
        "fewer epochs",
        LAST,
    ),
    Metric(
        "reward_model/score_mean",
        "raw score",
        "mean of raw scores of the reference's responses; scores are shifted by it",
        Range(words="any"),
        combines=LAST,
    ),
    Metric(
        "reward_model/score_std",
        "raw score",
        "standard deviation of raw scores of the reference's responses; scores are divided by it",
        Range(words="any"),
        SCORE_SPREAD,
        std_around("reward_model/score_mean"),
    ),
    HEALTH_WARNINGS,
)

LONGER_PRETRAINING = "more epochs, higher `critic_pretraining.learning_rate`"
ABOVE_BEFORE = Range(words="above 0 after, and above the one before")
OVERFITTED_CRITIC = "below: fewer epochs, more `reward_model.calibration_samples` or `critic_pretraining.samples`"

OF_CRITIC_PRETRAINING = (
    Metric(
        "critic_pretraining/first_loss",
        "score²",
        "½ Eₜ (V − R)² on the reference's responses, at the first step",
        FALLS,
        LONGER_PRETRAINING,
        LAST,
    ),
    Metric(
        "critic_pretraining/loss",
        "score²",
        "½ Eₜ (V − R)² on the reference's responses, mean of the last tenth",
        FALLS,
        LONGER_PRETRAINING,
        LAST,
    ),
    Metric(
        "critic_pretraining/explained_variance_before",
        "share",
        "1 − Var(R − V) / Var(R) on prompts that were held out, before",
        ABOVE_BEFORE,
        OVERFITTED_CRITIC,
        LAST,
    ),
    Metric(
        "critic_pretraining/explained_variance",
        "share",
        "1 − Var(R − V) / Var(R) on prompts that were held out, after",
        ABOVE_BEFORE,
        OVERFITTED_CRITIC,
        LAST,
    ),
    Metric(
        "critic_pretraining/steps",
        "steps",
        "optimizer steps",
        Range(words="tens to hundreds"),
        "smaller `batch_size`, more responses",
        SUM,
    ),
)
