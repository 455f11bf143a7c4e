"""How a reward model judges preferences that it was never trained on: pair by pair, and what that comes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ppo_core import calibration_bins, expected_calibration_error
from tasks.store.schemas import HELD_OUT_PAIRS, Table, table_of
from tasks.text import encode_dialogues

BY_LENGTH = ("accuracy_chosen_longer", "accuracy_chosen_shorter")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """Two responses to one prompt, of which people ranked the first higher."""

    preference: int
    """The position of the preference that it is of."""
    chosen: int
    rejected: int
    """The positions of the responses in it."""
    chosen_score: float
    rejected_score: float
    longer_by: int
    """Tokens of the chosen response less those of the rejected one."""


@torch.no_grad()
def held_out_pairs(
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    token_budget: int,
    scores_of: Callable[[list[list[int]]], torch.Tensor],
) -> list[JudgedPair]:
    """The strict pairs of held-out preferences with the scores of their responses, in the order of the preferences."""
    groups = [encode_dialogues(tokenizer, row, row["responses"]) for row in rows]
    scored: dict[int, list[float]] = {}
    for part in pack_groups(groups, token_budget):
        scores = iter(scores_of([ids for i in part for ids in groups[i]]).tolist())
        for i in part:
            scored[i] = [next(scores) for _ in groups[i]]
    pairs = []
    for i, row in enumerate(rows):
        for a, b in combinations(range(len(groups[i])), 2):
            if row["ranks"][a] != row["ranks"][b]:
                chosen, rejected = (a, b) if row["ranks"][a] < row["ranks"][b] else (b, a)
                pairs.append(
                    JudgedPair(
                        preference=i,
                        chosen=chosen,
                        rejected=rejected,
                        chosen_score=scored[i][chosen],
                        rejected_score=scored[i][rejected],
                        # The prompt is the same, so that this is the responses' difference.
                        longer_by=len(groups[i][chosen]) - len(groups[i][rejected]),
                    )
                )
    return pairs


def quality_of(pairs: Sequence[JudgedPair]) -> dict[str, Any]:
    """Accuracy, mean margin and reliability of ``σ(s⁺ − s⁻)`` over pairs.

    Accuracy also apart for pairs whose chosen response has more tokens than the other, and fewer; None where there is none.
    """
    margin = torch.tensor([pair.chosen_score - pair.rejected_score for pair in pairs])
    difference = torch.tensor([pair.longer_by for pair in pairs])
    preference_of = [pair.preference for pair in pairs]
    is_right = margin > 0
    probabilities = torch.sigmoid(margin)
    by_length = dict(zip(BY_LENGTH, (difference > 0, difference < 0), strict=True))
    return {
        "preferences": len(set(preference_of)),
        "pairs": len(pairs),
        "accuracy": float(is_right.float().mean()),
        "accuracy_error": clustered_error(is_right.tolist(), preference_of),
        **{name: float(is_right[own].float().mean()) if own.any() else None for name, own in by_length.items()},
        "mean_margin": float(margin.mean()),
        "calibration_error": float(expected_calibration_error(probabilities)),
        "bins": [own._asdict() for own in calibration_bins(probabilities)],
    }


def clustered_error(is_right: Sequence[bool], preference_of: Sequence[int]) -> float:
    """Standard error of the mean of ``is_right``, when the pairs of one preference may be right and wrong together.

    ``√(Σ_g (Σ_{i in g} (x_i − mean))²) / n``; where each preference is one pair, ``√(p (1 − p) / n)``. Liang and Zeger 1986.
    """
    mean = sum(is_right) / len(is_right)
    sums: dict[int, float] = {}
    for right, preference in zip(is_right, preference_of, strict=True):
        sums[preference] = sums.get(preference, 0.0) + right - mean
    return float(sum(total**2 for total in sums.values()) ** 0.5 / len(is_right))


def pairs_table(rows: Sequence[dict[str, Any]], pairs: Sequence[JudgedPair]) -> Table:
    """The pairs with their texts, to read where the model is wrong."""
    found = []
    for pair in pairs:
        row = rows[pair.preference]
        texts = (row["responses"][pair.chosen], row["responses"][pair.rejected])
        scores = (pair.chosen_score, pair.rejected_score, pair.chosen_score - pair.rejected_score)
        said = (row["margin"], row["source"])
        found.append((row["preference_id"], row["prompt"], *texts, *scores, pair.longer_by, *said))
    return table_of(found, HELD_OUT_PAIRS)


def pack_groups(groups: Sequence[Sequence[Sequence[int]]], token_budget: int) -> list[list[int]]:
    """Positions of groups of like width, as many together as stay within the budget when padded; none is ever cut."""
    widths = [max(len(row) for row in group) for group in groups]
    packed: list[list[int]] = []
    num_rows = 0
    for i in sorted(range(len(groups)), key=lambda i: widths[i]):
        num_rows += len(groups[i])
        # Widths rise, so the newest one is the width of all.
        if packed and num_rows * widths[i] <= token_budget:
            packed[-1].append(i)
        else:
            packed.append([i])
            num_rows = len(groups[i])
    return packed
