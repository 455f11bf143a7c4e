"""From one score per response to one reward per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_core.errors import ConfigError, EmptyMaskError, NonFiniteError, ShapeError
from ppo_core.masking import masked_whiten
from ppo_core.shapes import Bool, Float, Int, require_same_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all scores so far: three numbers to keep between batches."""

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0

    def with_scores(self, scores: Float[Tensor, " B"]) -> RunningMoments:
        """The moments of these scores and all before, in whatever batches they came.

        Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        exact = scores.double()
        if not exact.isfinite().all():
            raise NonFiniteError(f"scores hold {float(exact[~exact.isfinite()][0])}; look at what gave that score")
        count = self.count + len(exact)
        if len(exact) == 0:
            return self
        mean = float(exact.mean())
        shift = mean - self.mean
        squared_deviations = float((exact - mean).square().sum()) + shift**2 * self.count * len(exact) / count
        return RunningMoments(
            count=count,
            mean=self.mean + shift * len(exact) / count,
            squared_deviations=self.squared_deviations + squared_deviations,
        )

    @property
    def std(self) -> float:
        """With ddof 1; 0 for fewer than two scores."""
        return math.sqrt(self.squared_deviations / (self.count - 1)) if self.count > 1 else 0.0


def overlong_penalty(
    lengths: Int[Tensor, " B"], *, max_length: int, ramp: int, penalty: float = 1.0
) -> Float[Tensor, " B"]:
    """What a response of each length pays, in tokens: nothing up to ``max_length - ramp``, then more with each token.

        penalty * clamp((length - (max_length - ramp)) / ramp, 0, 1)

    Yu et al. 2025, DAPO, arXiv:2503.14476, eq. 13 with the sign turned round: this is to be subtracted.
    """
    if not 0 < ramp <= max_length:
        raise ConfigError(f"ramp={ramp} must be at least 1 and at most max_length={max_length}")
    return penalty * ((lengths.float() - (max_length - ramp)) / ramp).clamp(0.0, 1.0)


def treated_scores(
    scores: Float[Tensor, " B"],
    cut_off: Bool[Tensor, " B"],
    *,
    moments: RunningMoments | None = None,
    clip: float | None = None,
    keep_cut_off: bool = True,
    cut_off_penalty: float = 0.0,
    length_penalty: Float[Tensor, " B"] | None = None,
    whiten: bool = False,
) -> Float[Tensor, " B"]:
    """What of a score counts as reward, in this order and each only when asked for.

        (score - mean) / (std + 1e-8)      with ``moments``, usually those of all scores so far and this batch's
        clamp to [-clip, clip]
        0                                  where ``cut_off`` unless ``keep_cut_off``: an unfinished response has no score
        - cut_off_penalty                  where ``cut_off``: the response ran into the length limit
        - length_penalty                   each response's own, such as ``overlong_penalty``
        masked_whiten(center=False)        over the batch: standard deviation 1, the mean stays

    Running moments: Engstrom et al. 2020, arXiv:2005.12729, section 2.
    """
    require_same_shape(scores=scores, cut_off=cut_off)
    if length_penalty is not None:
        require_same_shape(scores=scores, length_penalty=length_penalty)
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip={clip} must be positive; None does not clip")
    if moments is not None:
        scores = (scores - moments.mean) / (moments.std + 1e-8)
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    if not keep_cut_off:
        scores = torch.where(cut_off, 0.0, scores)
    scores = torch.where(cut_off, scores - cut_off_penalty, scores)
    if length_penalty is not None:
        scores = scores - length_penalty
    return masked_whiten(scores, torch.ones_like(cut_off), center=False) if whiten else scores


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, kl_coef: float
) -> Float[Tensor, "B T"]:
    """The KL penalty at every response token, and the score at the last one.

        r_t = -kl_coef * kl_t + [t = last] * score

    0 outside the mask, where ``kl`` is never read. A row without a token has nowhere to put its score and is refused.
    """
    require_same_shape(response_mask=response_mask, kl=kl)
    if scores.shape != response_mask.shape[:1]:
        raise ShapeError(f"scores is {tuple(scores.shape)} for {len(response_mask)} responses; give one per response")
    has_token = response_mask.any(dim=1)
    if not has_token.all():
        row = int((~has_token).nonzero()[0])
        raise EmptyMaskError(f"response_mask selects no token in row {row}; drop empty responses before batching")
    columns = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, columns, -1).max(dim=1, keepdim=True).values
    penalty = -kl_coef * torch.where(response_mask, kl, 0.0)
    return penalty + torch.where(columns == last, scores[:, None].to(penalty.dtype), 0.0)
