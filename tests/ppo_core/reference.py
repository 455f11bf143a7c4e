"""The slow definitions: one response at a time, plain Python numbers, no recursion, no padding, no masks.

Nothing here may come from ppo_core: these are the expected values.
"""

import math
from collections.abc import Callable, Sequence

Row = Sequence[float]


def mean(xs: Row) -> float:
    return math.fsum(xs) / len(xs)


def std(xs: Row) -> float:
    """With ddof 1."""
    return math.sqrt(math.fsum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - 1))


def softmax(z: Row) -> list[float]:
    top = max(z)
    weights = [math.exp(x - top) for x in z]
    return [w / math.fsum(weights) for w in weights]


def logprob(z: Row, token: int, temperature: float = 1.0) -> float:
    return math.log(softmax([x / temperature for x in z])[token])


def entropy(z: Row) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(z) if p > 0)


def kl(z: Row, ref_z: Row) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(softmax(z), softmax(ref_z), strict=True) if p > 0)


def estimate(logprob: float, ref_logprob: float, estimator: str) -> float:
    inverse_ratio = math.exp(ref_logprob) / math.exp(logprob)
    return {
        "k1": -math.log(inverse_ratio),
        "k2": math.log(inverse_ratio) ** 2 / 2,
        "k3": inverse_ratio - 1 - math.log(inverse_ratio),
    }[estimator]


def kl_loss(new: float, old: float, ref: float, estimator: str, direction: str) -> float:
    """An estimate of a divergence of the new policy from the reference, seen by the old policy that drew the token."""
    first, second = (new, ref) if direction == "reverse" else (ref, new)
    return math.exp(first - old) * estimate(first, second, estimator)


def entropy_slope(z: Row) -> list[float]:
    """dH / dz_k = -p_k (log p_k + H)."""
    h = entropy(z)
    return [-p * (math.log(p) + h) for p in softmax(z)]


def kl_slope(z: Row, ref_z: Row, direction: str) -> list[float]:
    """Derivative of KL(p || q) (reverse) or KL(q || p) (forward) by the logits of p."""
    p, q = softmax(z), softmax(ref_z)
    if direction == "forward":
        return [a - b for a, b in zip(p, q, strict=True)]
    return [a * (math.log(a / b) - kl(z, ref_z)) for a, b in zip(p, q, strict=True)]


def logprob_slope(z: Row, token: int) -> list[float]:
    """Derivative of log p_token by the logits: one where the token is, less the probabilities."""
    return [float(v == token) - p for v, p in enumerate(softmax(z))]


def slope(function: Callable[[Row], float], xs: Row, step: float = 1e-5) -> list[float]:
    """Central differences."""
    return [
        (function([*xs[:i], x + step, *xs[i + 1 :]]) - function([*xs[:i], x - step, *xs[i + 1 :]])) / (2 * step)
        for i, x in enumerate(xs)
    ]


def aggregate(rows: Sequence[Row], num_tokens: int, num_responses: int | None = None) -> float:
    """One number from one term per token: each token weighs the same, or each row."""
    if num_responses is None:
        return math.fsum(x for row in rows for x in row) / num_tokens
    return math.fsum(mean(row) for row in rows) / num_responses


def treated(scores: Row, cut_off: Sequence[bool], past: Row | None, clip: float | None, penalty: float) -> list[float]:
    """Scores normalised by all past scores, clipped, and lowered where the response was cut off."""
    if past is not None:
        scores = [(s - mean(past)) / (std(past) + 1e-8) for s in scores]
    if clip is not None:
        scores = [clip if s > clip else -clip if s < -clip else s for s in scores]
    return [s - penalty if cut else s for s, cut in zip(scores, cut_off, strict=True)]


def token_rewards(score: float, kls: Row, kl_coef: float) -> list[float]:
    return [-kl_coef * k + (score if t == len(kls) - 1 else 0.0) for t, k in enumerate(kls)]


def gae(
    rewards: Row, values: Row, gamma: float, lam: float, horizon: int | None = None, bootstrap: float = 0.0
) -> list[float]:
    """Each advantage as its sum of discounted one-step errors, term by term."""
    following = [*values[1:], bootstrap]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    horizon = len(deltas) if horizon is None else horizon
    return [
        math.fsum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t : t + horizon]))
        for t in range(len(deltas))
    ]


def group_advantages(scores: Row, groups: Sequence[int], estimator: str) -> list[float]:
    result = []
    for i, (score, group) in enumerate(zip(scores, groups, strict=True)):
        same = [s for s, g in zip(scores, groups, strict=True) if g == group]
        others = [s for j, (s, g) in enumerate(zip(scores, groups, strict=True)) if g == group and j != i]
        if estimator == "vanilla_pg":
            result.append(score)
        elif estimator == "reinforce":
            result.append(score - mean(scores))
        elif estimator == "rloo":
            result.append(score - mean(others))
        elif estimator == "grpo":
            result.append((score - mean(same)) / (std(same) + 1e-6))
        elif estimator == "dr_grpo":
            result.append(score - mean(same))
    return result


def policy_objective(
    new_logprob: float, logprob: float, advantage: float, low: float, high: float, dual_clip: float | None = None
) -> float:
    """The four cases of the clipped surrogate, written out instead of a minimum."""
    ratio = math.exp(new_logprob) / math.exp(logprob)
    if advantage >= 0:
        return (1 + high) * advantage if ratio > 1 + high else ratio * advantage
    if ratio < 1 - low:
        return (1 - low) * advantage
    if dual_clip is not None and ratio > dual_clip:
        return dual_clip * advantage
    return ratio * advantage


def policy_clip_binds(new_logprob: float, logprob: float, advantage: float, low: float, high: float) -> bool:
    ratio = math.exp(new_logprob) / math.exp(logprob)
    return (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)


def value_error(new_value: float, value: float, target: float, clip: float | None) -> float:
    """Half the squared error of the new value or of the nearest value in range, whichever is worse."""
    if clip is None:
        return (new_value - target) ** 2 / 2
    if new_value > value + clip:
        near = value + clip
    elif new_value < value - clip:
        near = value - clip
    else:
        near = new_value
    return max((new_value - target) ** 2, (near - target) ** 2) / 2


def preference(chosen: float, rejected: float, margin: float = 0.0) -> float:
    return math.log(1 + math.exp(-(chosen - rejected - margin)))


def ranking_loss(
    scores: Row, ranks: Sequence[int], groups: Sequence[int], margins: Row | None = None, centering: float = 0.0
) -> float:
    by_prompt = []
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group]
        pairs = [
            preference(scores[i], scores[j], margins[i] if margins else 0.0) + centering * (scores[i] + scores[j]) ** 2
            for i in members
            for j in members
            if ranks[i] < ranks[j]
        ]
        if pairs:
            by_prompt.append(mean(pairs))
    return mean(by_prompt)


def calibration_error(probabilities: Row, num_bins: int) -> float:
    total = 0.0
    for b in range(num_bins):
        low, high = 0.5 + b / (2 * num_bins), 0.5 + (b + 1) / (2 * num_bins)
        inside = [p for p in probabilities if low <= max(p, 1 - p) < high or (b == num_bins - 1 and max(p, 1 - p) == 1)]
        if inside:
            confidence = mean([max(p, 1 - p) for p in inside])
            accuracy = mean([1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in inside])
            total += len(inside) / len(probabilities) * abs(confidence - accuracy)
    return total


def explained_variance(values: Row, returns: Row) -> float:
    def variance(xs: Row) -> float:
        return mean([(x - mean(xs)) ** 2 for x in xs])

    return 1 - variance([r - v for r, v in zip(returns, values, strict=True)]) / variance(returns)


def likely_tokens(probabilities: Row, top_k: int, top_p: float) -> set[int]:
    """Token ids that top-k, then top-p within its mass, leave."""
    ranked = sorted(range(len(probabilities)), key=lambda v: (-probabilities[v], v))
    ranked = ranked[:top_k] if top_k else ranked
    total = math.fsum(probabilities[v] for v in ranked)
    kept, mass = set(), 0.0
    for v in ranked:
        if mass >= top_p * total and kept:
            break
        kept.add(v)
        mass += probabilities[v]
    return kept


def splitmix64(seed: int, position: int) -> float:
    """Entry (seed, position) of the stream, in Python's unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    return (mix((mix(seed % 2**64) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53
