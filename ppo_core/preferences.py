"""Learning a score from comparisons, and whether its probabilities mean what they say."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppo_core.errors import ConfigError, EmptyMaskError
from ppo_core.shapes import Float, Int, require_same_shape


def preference_loss(
    chosen_scores: Float[Tensor, " B"],
    rejected_scores: Float[Tensor, " B"],
    *,
    margin: Float[Tensor, " B"] | None = None,
    centering: float = 0.0,
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the preferences under Bradley and Terry (1952).

        mean of -log sigmoid(chosen - rejected - margin)  +  centering * mean of (chosen + rejected)^2

    Only differences of scores matter to the first term; the second (Eisenstein et al. 2023, arXiv:2312.09244) keeps
    their level near 0. Margins: Touvron et al. 2023, arXiv:2307.09288, eq. 2.
    """
    require_same_shape(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    _require_some(chosen_scores, "a pair")
    differences = chosen_scores - rejected_scores
    if margin is not None:
        require_same_shape(chosen_scores=chosen_scores, margin=margin)
        differences = differences - margin
    loss = -logsigmoid(differences).mean()
    if centering:
        loss = loss + centering * (chosen_scores + rejected_scores).square().mean()
    return loss


def ranking_loss(
    scores: Float[Tensor, " N"],
    ranks: Int[Tensor, " N"],
    group_ids: Int[Tensor, " N"],
    *,
    margin: Float[Tensor, " N"] | None = None,
    centering: float = 0.0,
) -> Float[Tensor, ""]:
    """``preference_loss`` for rankings: responses with one group id answer one prompt, rank 1 is the best.

    Mean over the ordered pairs of a prompt, then over prompts: each prompt weighs the same however many responses it
    has (Ouyang et al. 2022, arXiv:2203.02155, eq. 1). A tie is no pair; a prompt without a pair does not count. The
    ``margin`` of a pair is that of its better response.
    """
    require_same_shape(scores=scores, ranks=ranks, group_ids=group_ids)
    same_prompt = group_ids[:, None] == group_ids[None, :]
    better, worse = (same_prompt & (ranks[:, None] < ranks[None, :])).nonzero(as_tuple=True)
    _require_some(better, "two differently ranked responses of one prompt")
    _, prompt_of_pair, pairs_of_prompt = group_ids[better].unique(return_inverse=True, return_counts=True)
    differences = scores[better] - scores[worse]
    if margin is not None:
        require_same_shape(scores=scores, margin=margin)
        differences = differences - margin[better]
    losses = -logsigmoid(differences)
    if centering:
        losses = losses + centering * (scores[better] + scores[worse]).square()
    return (losses / pairs_of_prompt[prompt_of_pair]).sum() / len(pairs_of_prompt)


class CalibrationBin(NamedTuple):
    """Pairs of about the same confidence."""

    lower: float
    """Where the bin begins."""
    pairs: int
    mean_confidence: float
    accuracy: float
    """Share of the pairs that the model is right about."""


def calibration_bins(probabilities_of_chosen: Float[Tensor, " B"], num_bins: int = 10) -> list[CalibrationBin]:
    """Confidence and accuracy of a preference model, in equal bins of confidence; those without a pair are left out.

    ``probabilities_of_chosen`` are ``p = sigmoid(chosen - rejected)``. The model predicts the response of higher score
    with confidence ``max(p, 1 - p)``, in [0.5, 1], and is right where ``p > 0.5`` (half right where it is undecided).
    """
    if num_bins < 1:
        raise ConfigError(f"num_bins={num_bins} must be at least 1; 10 is usual")
    p = probabilities_of_chosen.double()
    confidence = torch.maximum(p, 1 - p)
    right = (p > 0.5).double() + 0.5 * (p == 0.5)
    bins = ((confidence - 0.5) * 2 * num_bins).long().clamp(0, num_bins - 1)
    counts, confidences, rights = (
        p.new_zeros(num_bins).index_add(0, bins, x).tolist() for x in (torch.ones_like(p), confidence, right)
    )
    return [
        CalibrationBin(0.5 + b / (2 * num_bins), int(counts[b]), confidences[b] / counts[b], rights[b] / counts[b])
        for b in range(num_bins)
        if counts[b]
    ]


def expected_calibration_error(probabilities_of_chosen: Float[Tensor, " B"], num_bins: int = 10) -> Float[Tensor, ""]:
    """How far a preference model's confidence is from its accuracy: mean over pairs of their bin's difference.

    The bins are those of ``calibration_bins``. Guo et al. 2017, arXiv:1706.04599, eq. 5.
    """
    _require_some(probabilities_of_chosen, "a pair")
    bins = calibration_bins(probabilities_of_chosen, num_bins)
    total = sum(own.pairs * abs(own.mean_confidence - own.accuracy) for own in bins)
    return probabilities_of_chosen.new_tensor(total / len(probabilities_of_chosen))


def _require_some(x: Tensor, what: str) -> None:
    if len(x) == 0:
        raise EmptyMaskError(f"the batch does not hold {what}, so its mean does not exist; skip such a batch")
