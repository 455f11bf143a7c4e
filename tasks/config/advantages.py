"""The algorithm, and how scores become rewards, advantages and returns."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ppo_core.config import GroupEstimator, KLLossEstimator
from tasks.config.base import StageConfig

Algorithm = Literal["ppo", GroupEstimator]
"""``ppo`` learns a critic; the others compare the responses of an iteration, or of a prompt, with each other."""


class LengthCutConfig(StageConfig):
    """What a response counts for that was cut off by length, and so is unfinished; no other setting scores it again."""

    score: Literal["keep", "zero"] | None = None
    """``keep`` scores it as if it ended where it was cut off, ``zero`` gives it 0. Null keeps it, and says so where most
    responses are cut off; with ``advantages.bootstrap`` it is ``zero``, since the value stands for the score."""
    penalty: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Taken from that score."""
    ramp_tokens: int = Field(0, ge=0)
    """Last tokens before the limit over which every response, finished or not, pays more and more for its length."""
    ramp_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    """What it pays at the limit."""
    exclude: bool = False
    """Leave responses that were cut off out of the update altogether: of both losses, the baseline and the whitening."""

    @model_validator(mode="after")
    def _each_setting_is_read(self) -> Self:
        if self.exclude and (self.score is not None or self.penalty > 0):
            raise ValueError("exclude leaves nothing that score or penalty could count for; leave these out")
        if self.ramp_tokens == 0 and self.ramp_penalty != type(self).model_fields["ramp_penalty"].default:
            raise ValueError("ramp_penalty says nothing without ramp_tokens; set that too")
        return self


class AdvantagesConfig(StageConfig):
    """From scores to rewards and advantages."""

    kl_coef: float = Field(0.05, ge=0, allow_inf_nan=False)
    """Weight of the KL penalty in the reward of each token."""
    kl_estimator: KLLossEstimator = "k1"
    """Of the penalty. Only k1's policy gradient is that of the divergence: exact leaves out what a token does to the KL at
    its own position, so pair it with ``ppo.kl_loss_coef``; k2 and k3 are biased as rewards."""
    kl_target: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Nats a response that ``kl_coef`` is steered towards, from iteration to iteration; null keeps it as it is."""
    kl_horizon: float = Field(10000.0, gt=0, allow_inf_nan=False)
    """Responses over which ``kl_coef`` may change by a fifth."""
    normalize_scores: bool = False
    """Take from each score the mean of all scores so far and divide by their standard deviation."""
    score_clip: float | None = Field(None, gt=0)
    """Then limit scores to plus and minus this."""
    length_cut: LengthCutConfig = LengthCutConfig()
    """Then what a response counts for that ran into the length limit."""
    whiten_scores: bool = False
    """Then give the scores of an iteration standard deviation 1; their mean stays."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of what a critic expects, and of rewards to go."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of the policy's advantages."""
    lam_alpha: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Instead of ``lam``, one that grows with the length T of a response: 1 - 1 / (lam_alpha T), 0.05 in the paper."""
    critic_lam: float = Field(1.0, ge=0, le=1)
    """Lambda of the critic's targets: 1 takes what came, less what the critic itself expected further on."""
    reward_to_go: bool = False
    """Without a critic, with reinforce or vanilla_pg: a token's advantage is the discounted reward from there on, and not
    the response's."""
    horizon: int | None = Field(None, gt=0)
    """Steps that an advantage looks ahead; null looks to the end of the response."""
    bootstrap: bool = False
    """Count the critic's value after a response that was cut off by length, in place of its score; off, nothing is
    expected after it."""
    whiten: bool | None = None
    """Give the advantages of an iteration mean 0 and standard deviation 1; null does so where there is a critic."""

    @model_validator(mode="after")
    def _target_needs_a_coefficient(self) -> Self:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target steers kl_coef, which stays 0 once it is 0; give kl_coef a positive start")
        if self.kl_target is None and self.kl_horizon != type(self).model_fields["kl_horizon"].default:
            raise ValueError("kl_horizon says nothing without kl_target; set that too")
        if self.lam_alpha is not None and self.lam != type(self).model_fields["lam"].default:
            raise ValueError("lam_alpha stands in the place of lam; leave one of them out")
        return self

    @model_validator(mode="after")
    def _bootstrapping_replaces_the_score(self) -> Self:
        cut = self.length_cut
        for name, contradicts in {
            "score": cut.score == "keep",
            "penalty": cut.penalty > 0,
            "ramp_tokens": cut.ramp_tokens > 0,
            "exclude": cut.exclude,
        }.items():
            if self.bootstrap and contradicts:
                raise ValueError(
                    f"length_cut.{name}={getattr(cut, name)}: with bootstrap the critic's value stands for what a response "
                    "that was cut off would score, which would count twice; leave one of the two out"
                )
        return self

    @property
    def scores_count_when_cut_off(self) -> bool:
        """Whether an unfinished response has a score."""
        return not (self.bootstrap or self.length_cut.exclude or self.length_cut.score == "zero")


class ComputeAdvantagesConfig(AdvantagesConfig):
    """What the stage reads."""

    algorithm: Algorithm = "ppo"
    max_new_tokens: int | None = Field(None, gt=0)
    """Length at which responses were cut off; ``length_cut.ramp_tokens`` counts back from it."""
