"""The settings of one sampling call and of one policy update, checked when they are built."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ppo_core.errors import ConfigError

GroupEstimator = Literal["vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo"]
COMPARES_SAMPLES: tuple[GroupEstimator, ...] = ("rloo", "grpo", "dr_grpo")
"""Those whose advantage is 0, or does not exist, for a prompt with one sample."""
Loss = Literal["ppo", "pg"]
Aggregation = Literal["token_mean", "seq_mean"]
KLLossEstimator = Literal["k1", "k2", "k3", "exact"]
KLDirection = Literal["reverse", "forward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How responses are drawn from a policy."""

    max_new_tokens: int
    """Length at which a response is cut off; such a response has not stopped."""

    temperature: float = 1.0
    """Logits are divided by it. The stored logprobs are at this temperature, so the update must use the same one."""

    top_p: float = 1.0
    """Draw from the smallest set of most likely tokens whose mass reaches this; 1 draws from all."""

    top_k: int = 0
    """Draw from this many most likely tokens; 0 draws from all. Applied before ``top_p``."""

    stop_token_ids: tuple[int, ...] = ()
    """A response ends with the first of these, which stays in the response. A run adds what its model ends with; in a
    loop of your own, put the EOS token here."""

    suppress_token_ids: tuple[int, ...] = ()
    """These are never drawn. Like ``top_k`` and ``top_p`` they leave the stored logprobs as they are."""

    def __post_init__(self) -> None:
        _require_at_least_one("max_new_tokens", self.max_new_tokens, "a response has at least one token")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"temperature={self.temperature} must be positive and finite; top_k=1 always takes the most likely token"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]; 1 draws from the whole distribution")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must not be negative; 0 draws from the whole vocabulary")
        for name in ("stop_token_ids", "suppress_token_ids"):
            if any(token_id < 0 for token_id in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} holds a negative id; leave out a token you lack")
        if both := set(self.stop_token_ids) & set(self.suppress_token_ids):
            raise ConfigError(
                f"suppress_token_ids: {min(both)} is among stop_token_ids, so it would never end a response"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig:
    """Hyperparameters of one policy update. Learning rates belong to the optimizers."""

    loss: Loss = "ppo"
    """The clipped surrogate, or ``pg``: minus log-probability times advantage, without ratio or clip. Right for one
    step: after it, the policy is no longer the one that sampled."""

    aggregation: Aggregation = "token_mean"
    """Mean over the tokens of a minibatch, or ``seq_mean``: over the tokens of each response, then over responses."""

    cliprange: float | tuple[float, float] = 0.2
    """Half-width of the ratio clip, or (below, above) 1: 0.2 keeps the ratio's gain within [0.8, 1.2]."""

    cliprange_value: float | None = None
    """How far a new value may move from the stored one before its loss stops falling, in units of the scores; None does
    not clip. Rewards have no usual size: clipped to 0.2, a critic of rewards of 100 would take 500 updates to say so."""

    vf_coef: float = 0.1
    """Weight of the value loss in the one loss of a policy and a critic on its body; a critic with a body of its own has
    a loss of its own, without a weight."""

    dual_clip: float | None = None
    """For negative advantages the objective does not fall below this many times the advantage; None does not bound."""

    importance_cap: float = 2.0
    """Where another engine than the trainer sampled, or an older policy, a token weighs exp(the policy's log-probability
    before the update - the sampler's), but no more than this; ``inf`` does not truncate."""

    kl_loss_coef: float = 0.0
    """Weight of a KL divergence from the reference in the policy's loss; 0 leaves it out."""

    kl_loss_estimator: KLLossEstimator = "k3"
    """What the divergence's value is estimated by; ``exact`` sums over the vocabulary and runs the reference again.
    The gradient is that of the divergence for each of them."""

    kl_loss_direction: KLDirection = "reverse"
    """``reverse`` is KL(policy || reference), ``forward`` KL(reference || policy)."""

    entropy_coef: float = 0.0
    """Weight of the entropy of the next-token distributions, which is added to the objective; 0 leaves it out."""

    target_kl: float | None = None
    """The policy stops after an epoch whose mean ``approx_kl`` passes this; None takes all epochs."""

    epochs: int = 4
    """Passes of the policy over the rollouts."""

    critic_epochs: int | None = None
    """Passes of the critic over the rollouts; None takes as many as the policy."""

    num_minibatches: int = 4
    """Optimizer steps per epoch; the rollouts are split into so many parts by rows."""

    max_grad_norm: float = 1.0
    """The policy's gradient is scaled down to this norm; ``inf`` never scales."""

    critic_max_grad_norm: float = 1.0
    """The critic's gradient is scaled down to this norm; ``inf`` never scales."""

    def __post_init__(self) -> None:
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name}={getattr(self, name)!r} is none of {', '.join(values)}")
        below, above = ratio_clip_widths(self.cliprange)
        if not (0 < below < 1 and 0 < above < math.inf):
            raise ConfigError(
                f"cliprange={self.cliprange} must lie in (0, 1), above 1 in (0, inf); 0.2 clips ratios to [0.8, 1.2]"
            )
        if self.cliprange_value is not None and not self.cliprange_value > 0:
            raise ConfigError(f"cliprange_value={self.cliprange_value} must be positive; None does not clip values")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"dual_clip={self.dual_clip} must be above 1, 3 is usual; None does not bound the loss")
        if not self.importance_cap >= 1:
            raise ConfigError(
                f"importance_cap={self.importance_cap} must be at least 1, 2 is usual; inf does not truncate"
            )
        if self.loss == "pg" and (self.cliprange != _default("cliprange") or self.dual_clip is not None):
            raise ConfigError("loss=pg has no ratio to clip; leave cliprange and dual_clip out, or take loss=ppo")
        for name in ("kl_loss_coef", "entropy_coef", "vf_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and finite; 0 leaves the term out")
        if self.kl_loss_coef == 0 and (self.kl_loss_estimator, self.kl_loss_direction) != ("k3", "reverse"):
            raise ConfigError("kl_loss_estimator and kl_loss_direction say nothing while kl_loss_coef=0; set it too")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ConfigError(f"target_kl={self.target_kl} must be positive, 0.05 is usual; None takes all epochs")
        _require_at_least_one("epochs", self.epochs, "an update passes over its rollouts")
        if self.critic_epochs is not None:
            _require_at_least_one("critic_epochs", self.critic_epochs, "None takes as many as the policy")
        _require_at_least_one("num_minibatches", self.num_minibatches, "1 takes all rollouts in one step")
        for name in ("max_grad_norm", "critic_max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive; inf never scales the gradient")


_CHOICES = {
    "loss": get_args(Loss),
    "aggregation": get_args(Aggregation),
    "kl_loss_estimator": get_args(KLLossEstimator),
    "kl_loss_direction": get_args(KLDirection),
}


def _default(name: str) -> object:
    return PPOConfig.__dataclass_fields__[name].default


def ratio_clip_widths(cliprange: float | tuple[float, float]) -> tuple[float, float]:
    """How far below and above 1 the ratio may count: one number sets both."""
    return cliprange if isinstance(cliprange, tuple) else (cliprange, cliprange)


def _require_at_least_one(name: str, value: int, hint: str) -> None:
    if not value >= 1:
        raise ConfigError(f"{name}={value} must be at least 1; {hint}")


def can_share(shares: int, processes: int) -> bool:
    """Whether so many processes add up gradients as one does: each has a whole branch of the tree over the shares."""
    each, rest = divmod(shares, processes)
    return shares == 1 or processes == 1 or (rest == 0 and each & (each - 1) == 0)
