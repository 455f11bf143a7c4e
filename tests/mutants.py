"""Small wrong changes to the code, each of which the tests must notice.

    python tests/mutants.py [FILTER]        FILTER: part of a file name or of the text of a change

Each change is made in a copy of the tree, where the tests named beside it run until the first of them fails. A change
that all of them let pass survives: a test is missing. A change that changes nothing has no place in the tables.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("ppo_core", "tasks", "flows", "tests", "pyproject.toml")
TIME_LIMIT_S = 240

# One entry per file: the file, the tests that must notice (separated by spaces), and (exact old text, new text). The
# old text occurs once in the file.
Table = list[tuple[str, str, list[tuple[str, str]]]]

PPO_CORE: Table = [
    (
        "ppo_core/losses.py",
        "tests/ppo_core/test_importance.py",
        [
            (
                "(torch.where(response_mask, x, 0.0) for x in (logprobs, sampling_logprobs))",
                "(x for x in (logprobs, sampling_logprobs))",
            ),
            ("(logprobs - sampling_logprobs).exp()", "(sampling_logprobs - logprobs).exp()"),
            ('kl_estimate(sampling_logprobs, logprobs, "k3")', 'kl_estimate(logprobs, sampling_logprobs, "k3")'),
            ("ratio.clamp(max=cap)", "ratio.clamp(min=1, max=cap)"),
            ("ratio.clamp(max=cap)", "ratio"),
            ("(weights < ratio)", "(weights <= ratio)"),
            ("torch.where(response_mask, weights.detach(), 1.0) * objective", "objective"),
            ("if not cap >= 1:", "if not cap > 0:"),
        ],
    ),
    (
        "ppo_core/losses.py",
        "tests/ppo_core/test_losses.py",
        [
            # aggregate_loss
            ("return terms.sum() / num_tokens", "return terms.sum() / response_mask.sum()"),
            ("return terms.sum() / num_tokens", "return terms.sum()"),
            ("terms = torch.where(response_mask, terms, 0.0)", "terms = terms * response_mask"),
            ("return (terms / lengths).sum() / num_responses", "return (terms / lengths).sum() / len(terms)"),
            ("return (terms / lengths).sum() / num_responses", "return terms.sum() / num_responses"),
            ("(dim=-1, keepdim=True).clamp(min=1)", "(dim=-1, keepdim=True)"),
            ("(dim=-1, keepdim=True).clamp(min=1)", "(dim=0, keepdim=True).clamp(min=1)"),
            ('    _require_positive("num_responses"', '    print("num_responses"'),
            ('    _require_positive("num_tokens"', '    print("num_tokens"'),
            # policy_loss
            ("ratio = (new_logprobs - logprobs).exp()", "ratio = (logprobs - new_logprobs).exp()"),
            ("torch.minimum(unclipped, clipped)", "torch.maximum(unclipped, clipped)"),
            ("objective = torch.minimum(unclipped, clipped)", "objective = unclipped"),
            ("ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)"),
            ("ratio.clamp(1 - low, 1 + high)", "ratio.clamp(max=1 + high)"),
            ("torch.where(advantages < 0, torch.maximum(", "torch.where(advantages > 0, torch.maximum("),
            ("torch.maximum(objective, dual_clip", "torch.minimum(objective, dual_clip"),
            (
                "loss = -aggregate_loss(objective, response_mask, num_tokens=num_tokens, num_responses=num_responses)\n"
                "    with torch.no_grad():\n        binds",
                "loss = aggregate_loss(objective, response_mask, num_tokens=num_tokens, num_responses=num_responses)\n"
                "    with torch.no_grad():\n        binds",
            ),
            ("(clipped < unclipped)", "(clipped != unclipped)"),
            ("not dual_clip > 1:", "not dual_clip > 0:"),
            (
                "torch.where(response_mask, x, 0.0) for x in (new_logprobs, logprobs, advantages)\n    )\n    ratio",
                "x for x in (new_logprobs, logprobs, advantages)\n    )\n    ratio",
            ),
            (
                "num_responses=num_responses)\n    with torch.no_grad():\n        binds = (clipped",
                ")\n    with torch.no_grad():\n        binds = (clipped",
            ),
            # the statistics of policy_loss and pg_loss
            ("torch.expm1(new_logprobs - logprobs)", "torch.expm1(logprobs - new_logprobs)"),
            ('kl_estimate(logprobs, new_logprobs, "k3")', 'kl_estimate(new_logprobs, logprobs, "k3")'),
            ("k3.sum(dim=-1).square().sum()", "k3.square().sum()"),
            ("/ num_tokens**2", "/ num_tokens"),
            ('kl_estimate(logprobs, new_logprobs, "k1")', 'kl_estimate(new_logprobs, logprobs, "k1")'),
            ("mean(deviations + 1)", "mean(deviations)"),
            ("deviations.abs().max()", "deviations.max()"),
            # pg_loss
            ("objective = new_logprobs * advantages", "objective = (new_logprobs - logprobs).exp() * advantages"),
            (
                "loss = -aggregate_loss(objective, response_mask, num_tokens=num_tokens, num_responses=num_responses)\n"
                "    with torch.no_grad():\n        stats",
                "loss = aggregate_loss(objective, response_mask, num_tokens=num_tokens, num_responses=num_responses)\n"
                "    with torch.no_grad():\n        stats",
            ),
            (
                "torch.where(response_mask, x, 0.0) for x in (new_logprobs, logprobs, advantages)\n    )\n    objective",
                "x for x in (new_logprobs, logprobs, advantages)\n    )\n    objective",
            ),
            (
                "num_responses=num_responses)\n    with torch.no_grad():\n        stats = _ratio",
                ")\n    with torch.no_grad():\n        stats = _ratio",
            ),
            # kl_loss
            (
                "kl_loss_terms(new_logprobs, logprobs, ref_logprobs,",
                "kl_loss_terms(new_logprobs, ref_logprobs, logprobs,",
            ),
            (
                "torch.where(response_mask, x, 0.0) for x in (new_logprobs, logprobs, ref_logprobs)",
                "x for x in (new_logprobs, logprobs, ref_logprobs)",
            ),
            (
                "return aggregate_loss(terms, response_mask, num_tokens=num_tokens, num_responses=num_responses)",
                "return aggregate_loss(terms, response_mask, num_tokens=num_tokens)",
            ),
            # value_loss
            ("torch.maximum(errors, (near", "torch.minimum(errors, (near"),
            ("torch.maximum(errors, (near - returns).square())", "(near - returns).square()"),
            (".clamp(values - cliprange_value, values + cliprange_value)", ".clamp(-cliprange_value, cliprange_value)"),
            ("errors = worse_errors = (new_values - returns)", "errors = worse_errors = (new_values - values)"),
            ("loss = 0.5 * aggregate_loss(", "loss = aggregate_loss("),
            ("(worse_errors > errors)", "(worse_errors >= errors)"),
            (
                "(torch.where(response_mask, x, 0.0) for x in (new_values, values, returns))",
                "(new_values, values, returns)",
            ),
            (
                "(worse_errors, response_mask, num_tokens=num_tokens, num_responses=num_responses)",
                "(worse_errors, response_mask, num_tokens=num_tokens)",
            ),
        ],
    ),
    (
        "ppo_core/kl.py",
        "tests/ppo_core/test_kl.py tests/ppo_core/test_kl_loss.py tests/ppo_core/test_laws.py::"
        "test_4_k3_is_never_negative_even_in_single_precision_near_zero",
        [
            # kl_estimate
            ("d = logprobs - ref_logprobs\n    if", "d = ref_logprobs - logprobs\n    if"),
            ("return d.square() / 2", "return d.square()"),
            ("(torch.expm1(-d) + d)", "(torch.expm1(d) - d)"),
            ("(torch.expm1(-d) + d)", "(torch.exp(-d) - 1 + d)"),
            ("(torch.expm1(-d) + d)", "torch.expm1(-d)"),
            # exact_kl
            ("checkpoint(_exact_kl_of_chunk, z, ref_z,", "checkpoint(_exact_kl_of_chunk, ref_z, z,"),
            (
                "checkpoint(_exact_kl_of_chunk, z, ref_z, use_reentrant=False, preserve_rng_state=False)",
                "_exact_kl_of_chunk(z, ref_z)",
            ),
            ("chunk = max(1, _CHUNK_ENTRIES // num_classes)", "chunk = _CHUNK_ENTRIES // num_classes"),
            ("(log_p.exp() * torch.where", "(log_q.exp() * torch.where"),
            ("torch.where(log_p == -torch.inf, 0.0, log_p - log_q)", "(log_p - log_q)"),
            ("log_p = at_least_float32(logits).log", "log_p = logits.log"),
            ("log_q = at_least_float32(ref_logits).log", "log_q = ref_logits.log"),
            # kl_loss_terms
            ("new = new_logprobs.detach()", "new = new_logprobs"),
            ("d = new - ref_logprobs", "d = ref_logprobs - new"),
            ("ratio = (new - logprobs).exp()", "ratio = torch.ones_like(new)"),
            ("estimator), ratio * d", "estimator), d"),
            ("estimator), ratio * d", "estimator), ratio * (d + 1)"),
            ("estimator), ratio * d", "estimator), -ratio * torch.expm1(-d)"),
            ("value, slope = ratio * kl_estimate(", "value, slope = kl_estimate("),
            ("value = (ref_logprobs - logprobs).exp() *", "value = ratio *"),
            ("kl_estimate(ref_logprobs, new, estimator)", "kl_estimate(new, ref_logprobs, estimator)"),
            ("slope = -ratio * torch.expm1(-d)", "slope = ratio * torch.expm1(-d)"),
            ("slope = -ratio * torch.expm1(-d)", "slope = -ratio * (-d).exp()"),
            (
                "return value + slope * (new_logprobs - new)",
                "return kl_estimate(new_logprobs, ref_logprobs, estimator)",
            ),
            ("return value + slope * (new_logprobs - new)", "return slope * new_logprobs"),
            # next_kl_coef
            ("min(max(mean_kl / target - 1, -0.2), 0.2)", "mean_kl / target - 1"),
            ("max(mean_kl / target - 1, -0.2)", "max(1 - mean_kl / target, -0.2)"),
            ("kl_coef * (1 + error * num_responses / horizon)", "kl_coef * (1 + error / horizon)"),
            ("kl_coef * (1 + error * num_responses / horizon)", "kl_coef + error * num_responses / horizon"),
            ("num_responses < 5 * horizon", "num_responses < 6 * horizon"),
            ("if not target > 0:", "if not target >= 0:"),
        ],
    ),
    (
        "ppo_core/rewards.py",
        "tests/ppo_core/test_rewards.py",
        [
            # RunningMoments
            (" + shift**2 * self.count * len(exact) / count", ""),
            ("mean=self.mean + shift * len(exact) / count", "mean=self.mean + shift / 2"),
            ("mean=self.mean + shift * len(exact) / count", "mean=mean"),
            ("self.squared_deviations + squared_deviations", "squared_deviations"),
            ("/ (self.count - 1)) if", "/ self.count) if"),
            ("if self.count > 1 else 0.0", "if self.count > 0 else 0.0"),
            ("if not exact.isfinite().all():", "if exact.isnan().any():"),
            ("exact = scores.double()", "exact = scores.float()"),
            (
                "if len(exact) == 0:\n            return self",
                "if len(exact) == 0:\n            return RunningMoments()",
            ),
            # treated_scores
            ("(scores - moments.mean) / (moments.std + 1e-8)", "scores / (moments.std + 1e-8)"),
            ("(scores - moments.mean) / (moments.std + 1e-8)", "scores - moments.mean"),
            ("scores.clamp(-clip, clip)", "scores.clamp(max=clip)"),
            ("not clip > 0:", "clip < 0:"),
            ("scores - cut_off_penalty, scores)", "scores + cut_off_penalty, scores)"),
            ("torch.where(cut_off, scores - cut_off_penalty, scores)", "scores - cut_off_penalty"),
            ("torch.where(cut_off, scores -", "torch.where(~cut_off, scores -"),
            ("torch.ones_like(cut_off), center=False) if whiten", "torch.ones_like(cut_off), center=True) if whiten"),
            ("torch.ones_like(cut_off), center=False) if whiten", "~cut_off, center=False) if whiten"),
            (
                "    if moments is not None:\n        scores = (scores - moments.mean) / (moments.std + 1e-8)\n"
                "    if clip is not None:\n        scores = scores.clamp(-clip, clip)\n",
                "    if clip is not None:\n        scores = scores.clamp(-clip, clip)\n"
                "    if moments is not None:\n        scores = (scores - moments.mean) / (moments.std + 1e-8)\n",
            ),
            (
                "    if clip is not None:\n        scores = scores.clamp(-clip, clip)\n"
                "    if not keep_cut_off:\n        scores = torch.where(cut_off, 0.0, scores)\n"
                "    scores = torch.where(cut_off, scores - cut_off_penalty, scores)\n",
                "    if not keep_cut_off:\n        scores = torch.where(cut_off, 0.0, scores)\n"
                "    scores = torch.where(cut_off, scores - cut_off_penalty, scores)\n"
                "    if clip is not None:\n        scores = scores.clamp(-clip, clip)\n",
            ),
            ("    if not keep_cut_off:\n", "    if keep_cut_off:\n"),
            ("torch.where(cut_off, 0.0, scores)", "torch.zeros_like(scores)"),
            ("scores = scores - length_penalty", "scores = scores + length_penalty"),
            # overlong_penalty
            ("return penalty * ((lengths", "return -penalty * ((lengths"),
            ("- (max_length - ramp)) / ramp).clamp(0.0, 1.0)", "- max_length) / ramp).clamp(0.0, 1.0)"),
            ("/ ramp).clamp(0.0, 1.0)", "/ ramp).clamp(min=0.0)"),
            ("if not 0 < ramp <= max_length:", "if not 0 < ramp:"),
            # token_rewards
            ("penalty = -kl_coef *", "penalty = kl_coef *"),
            ("-kl_coef * torch.where(response_mask, kl, 0.0)", "-kl_coef * kl"),
            ("torch.where(response_mask, columns, -1).max(", "torch.where(response_mask, columns, 99).min("),
            ("torch.where(response_mask, columns, -1).max(", "columns.expand_as(response_mask).max("),
            ("torch.where(columns == last, scores", "torch.where(columns <= last, scores"),
            ("if not has_token.all():", "if not has_token.any():"),
            ("return penalty + torch.where(columns == last", "return penalty - torch.where(columns == last"),
        ],
    ),
    (
        "ppo_core/advantages.py",
        "tests/ppo_core/test_advantages.py",
        [
            # gae
            ("packed_rewards + gamma * next_values", "packed_rewards + next_values"),
            ("next_values - packed_values, 0.0)", "next_values + packed_values, 0.0)"),
            ("advantages_by(gamma * lam)", "advantages_by(lam)"),
            ("advantages_by(gamma * lam)", "advantages_by(gamma)"),
            ("advantages_by(gamma * critic_lam)", "advantages_by(critic_lam)"),
            ("advantages_by(gamma * critic_lam)", "advantages_by(gamma * lam)"),
            ("advantages if critic_lam is None else", "advantages if critic_lam == 1 else"),
            ("_discounted_sums(deltas, discount, horizon)", "_discounted_sums(deltas, discount, None)"),
            ("(1 - 1 / (alpha * lengths)).clamp(min=0)", "1 - 1 / (alpha * lengths)"),
            ("(1 - 1 / (alpha * lengths))", "(1 - alpha / lengths)"),
            ("if not alpha > 0:", "if not alpha >= 0:"),
            ("response_mask, gamma=gamma, lam=1.0)[0]", "response_mask, gamma=1.0, lam=1.0)[0]"),
            ("response_mask, gamma=gamma, lam=1.0)[0]", "response_mask, gamma=gamma, lam=0.9)[0]"),
            ("is_last = mask & ~_shifted(mask)", "is_last = mask"),
            ("order = response_mask.to(torch.int8)", "order = torch.zeros_like(response_mask, dtype=torch.int8)"),
            ("packed_values = torch.where(response_mask, values, 0.0)", "packed_values = values"),
            ("next_values = _shifted(packed_values)", "next_values = packed_values"),
            ("torch.where(response_mask, of_critic + torch.where(response_mask, values, 0.0), 0.0)", "of_critic"),
            ("of_critic + torch.where(response_mask, values, 0.0), 0.0)", "of_critic + values, values)"),
            ("for _ in range(horizon - 1):", "for _ in range(horizon):"),
            ("sums = x + of_row * _shifted(sums)", "sums = x + _shifted(sums)"),
            ("discount[:, None] if isinstance", "discount[0] if isinstance"),
            ("running = x[:, t] + discount * running", "running = x[:, t] + running"),
            ("for t in reversed(range(num_columns)):", "for t in range(num_columns):"),
            (".scatter(1, order, torch", ".scatter(1, order.flip(1), torch"),
            ("horizon < 1:", "horizon < 0:"),
            ("and bootstrap_values.shape != response_mask.shape[:1]:", "and False:"),
            # group_advantages
            (
                'if estimator == "vanilla_pg":\n        return scores',
                'if estimator == "vanilla_pg":\n        return -scores',
            ),
            ('if estimator == "vanilla_pg":', 'if estimator == "none":'),
            ("(exact - exact.mean())", "(exact - exact.median())"),
            ("(exact - exact.mean())", "(exact.mean() - exact)"),
            ("(sizes / (sizes - 1))[group]", "((sizes - 1) / sizes)[group]"),
            ("deviations * (sizes / (sizes - 1))[group]", "deviations"),
            ("/ (sizes - 1)).sqrt()", "/ sizes).sqrt()"),
            ("(std + 1e-6)[group]", "(std + 1e-2)[group]"),
            ('if estimator != "dr_grpo" and (sizes', "if (sizes"),
            ('elif estimator == "grpo":', 'elif estimator != "rloo":'),
            ("exact = scores.double()", "exact = scores"),
            ("x.new_zeros(num_groups).index_add(0, group, x)", "x.sum().expand(num_groups)"),
        ],
    ),
    (
        "ppo_core/masking.py",
        "tests/ppo_core/test_masking.py",
        [
            # masked_mean
            ("torch.where(mask, x, 0.0).sum() / count", "torch.where(mask, x, 0.0).mean()"),
            ("torch.where(mask, x, 0.0).sum() / count", "(x * mask).sum() / count"),
            ("torch.where(mask, x, 0.0).sum() / count", "x.sum() / count"),
            ("if count == 0:", "if count < 0:"),
            # masked_whiten
            (".sum() / (count - 1) + 1e-8)", ".sum() / count + 1e-8)"),
            (".sum() / (count - 1) + 1e-8)", ".sum() / (count - 1))"),
            ("if count < 2:", "if count < 1:"),
            ("return scaled if center else", "return scaled if not center else"),
            ("deviations = torch.where(mask, x - mean, 0.0)", "deviations = x - mean"),
            ("mean = x.sum() / count", "mean = x.mean()"),
            ("1e-8).rsqrt()", "1e-8)"),
            ("torch.where(mask, scaled + mean, 0.0)", "scaled + mean"),
            # explained_variance
            ("(returns[mask] - values[mask]).double()", "values[mask].double()"),
            ("errors.var(correction=0)", "errors.square().mean()"),
            ("(1 - errors.var(correction=0) /", "(errors.var(correction=0) /"),
            ("if (selected_returns == selected_returns[0]).all():", "if len(selected_returns) == 1:"),
            ("if len(selected_returns) == 0:", "if False:"),
        ],
    ),
    (
        "ppo_core/logprobs.py",
        "tests/ppo_core/test_logprobs.py",
        [
            # gather_logprobs
            ("z = at_least_float32(logits) / temperature", "z = at_least_float32(logits) * temperature"),
            ("z = at_least_float32(logits) / temperature", "z = at_least_float32(logits)"),
            ("z = at_least_float32(logits) / temperature", "z = logits / temperature"),
            ("[..., 0] - z.logsumexp(dim=-1)", "[..., 0]"),
            ("[..., 0] - z.logsumexp(dim=-1)", "[..., 0] - z.amax(dim=-1)"),
            ("(torch.float16, torch.bfloat16)", "(torch.float16,)"),
            # entropy
            ("return z.logsumexp(dim=-1) - expected", "return z.logsumexp(dim=-1) + expected"),
            ("return z.logsumexp(dim=-1) - expected", "return expected - z.logsumexp(dim=-1)"),
            ("torch.where(z == -torch.inf, 0.0, z).mul", "z.mul"),
            ("z = at_least_float32(logits)\n    expected", "z = logits\n    expected"),
            # linear_logprobs
            ("logits if temperature == 1 else logits.div_(temperature)", "logits"),
            ("        logits += bias\n", "        pass\n"),
            ("for start in range(0, length, chunk)]", "for start in range(0, length, length)]"),
            ("z.clamp_(min=_LOG_OF_ZERO)", "pass"),
            ("entropies[part] = total.log() - z.mul_", "entropies[part] = total.log() + z.mul_"),
            ("logsumexps[part] = largest[:, 0] + total.log()", "logsumexps[part] = total.log()"),
            ("            d_z.scatter_add_(-1, token_ids[part, None], d_logprobs[part, None])\n", ""),
            ("(d_z.div_(temperature) if temperature != 1 else d_z).to(dtype)", "d_z.to(dtype)"),
            ("d_z = p.mul_(-d_logprobs[part, None])", "d_z = p.mul_(d_logprobs[part, None])"),
            (".add_(entropies[part, None])\n", "\n"),
            (".mul_(-d_entropies[part, None]).sub_(d_logprobs[part, None])", ".mul_(-d_entropies[part, None])"),
            ("first, ctx.first_weights = ctx.first_weights, None", "first = ctx.first_weights"),
            ("d_hidden[part] = d_z @ own_weight", "d_hidden[part] = 0"),
            ("d_bias += d_z.sum(dim=0)", "d_bias += d_z.mean(dim=0)"),
            ("return (logprobs, entropies.view(token_ids.shape)) if", "return (logprobs, entropies) if"),
            ("if chunk < 1:", "if chunk < 0:"),
            ("if token_ids.shape != hidden.shape[:-1]:", "if False:"),
        ],
    ),
    (
        "ppo_core/preferences.py",
        "tests/ppo_core/test_preferences.py",
        [
            # preference_loss
            ("loss = -logsigmoid(differences).mean()", "loss = logsigmoid(differences).mean()"),
            ("loss = -logsigmoid(differences).mean()", "loss = -logsigmoid(differences).sum()"),
            ("loss = -logsigmoid(differences).mean()", "loss = -differences.sigmoid().log().mean()"),
            ("differences = chosen_scores - rejected_scores", "differences = rejected_scores - chosen_scores"),
            ("differences = differences - margin\n", "differences = differences + margin\n"),
            ("(chosen_scores + rejected_scores).square()", "(chosen_scores - rejected_scores).square()"),
            ("loss + centering * (chosen", "loss + (chosen"),
            ('_require_some(chosen_scores, "a pair")', "pass"),
            # ranking_loss
            ("(ranks[:, None] < ranks[None, :])", "(ranks[:, None] > ranks[None, :])"),
            ("(ranks[:, None] < ranks[None, :])", "(ranks[:, None] <= ranks[None, :])"),
            ("(same_prompt & (ranks", "((ranks"),
            ("(losses / pairs_of_prompt[prompt_of_pair]).sum() / len(pairs_of_prompt)", "losses.mean()"),
            (".sum() / len(pairs_of_prompt)", ".sum() / len(group_ids.unique())"),
            ("differences - margin[better]", "differences - margin[worse]"),
            ("differences - margin[better]", "differences + margin[better]"),
            ("(scores[better] + scores[worse]).square()", "(scores[better] - scores[worse]).square()"),
            ("losses = -logsigmoid(differences)", "losses = logsigmoid(differences)"),
            # expected_calibration_error
            ("right = (p > 0.5).double()", "right = (p < 0.5).double()"),
            (" + 0.5 * (p == 0.5)", ""),
            ("confidence = torch.maximum(p, 1 - p)", "confidence = p"),
            ("abs(own.mean_confidence - own.accuracy)", "(own.mean_confidence - own.accuracy)"),
            ("own.pairs * abs(", "abs("),
            ("(confidence - 0.5) * 2 * num_bins", "confidence * num_bins"),
            (".long().clamp(0, num_bins - 1)", ".long().clamp(0, num_bins)"),
            ("if num_bins < 1:", "if num_bins < 0:"),
        ],
    ),
    (
        "ppo_core/batch.py",
        "tests/ppo_core/test_batch.py",
        [
            ("self.offsets[0] != 0 or ", ""),
            ("or self.offsets[-1] != len(self.values)", ""),
            ("if (self.lengths < 0).any():", "if (self.lengths < 0).all():"),
            ("self.offsets.dtype != torch.int64", "self.offsets.dtype == torch.int8"),
            ("return cls(x[mask], _offsets(mask.sum(dim=1)))", "return cls(x[mask], _offsets(mask.sum(dim=0)))"),
            ("i = range(len(self))[i]", "pass"),
            ("torch.searchsorted(offsets[1:], positions, right=True)", "torch.searchsorted(offsets[1:], positions)"),
            ("(self.offsets[:-1][rows] - offsets[:-1])", "(self.offsets[:-1][rows])"),
            ("columns < lengths if side", "columns <= lengths if side"),
            ("columns >= width - lengths", "columns > width - lengths"),
            ("if width < longest:", "if width < longest - 9:"),
            ("if (ragged.lengths == 0).any():", "if (ragged.lengths == 0).all():"),
            ("if column.shape != self.responses.values.shape:", "if column.dim() != 1:"),
            ("if not len(self.prompts) == len(self.responses) == len(self.stopped):", "if False:"),
            ("if batch.token_columns.keys() != names:", "if False:"),
            ("stopped=self.stopped[rows]", "stopped=self.stopped[: len(offsets) - 1]"),
            ("{name: column[entries] for", "{name: column[: len(entries)] for"),
            ("prompts=self.prompts.select(rows)", "prompts=self.prompts.select(rows.flip(0))"),
            ("{**self.token_columns, **columns}", "{**columns, **self.token_columns}"),
            ("return self.prompts.lengths + self.responses.lengths", "return self.responses.lengths"),
            ("within = torch.arange(int(offsets[-1])) - offsets[row]", "within = torch.arange(int(offsets[-1]))"),
            ("start = line_of_row * width + offsets[:-1] - starts", "start = line_of_row * width + 0 * starts"),
            (
                "is_prompt = within < chosen.prompts.lengths[row]",
                "is_prompt = within <= chosen.prompts.lengths[row] - 2",
            ),
            ("position_ids.view(-1)[position] = within", "position_ids.view(-1)[position] = position"),
            ("position_ids if len(packed_rows) < len(chosen) else None", "position_ids"),
            ("(within >= chosen.prompts.lengths[row] - 1)", "(within >= chosen.prompts.lengths[row])"),
            ("within < chosen.lengths[row] - 1\n", "within < chosen.lengths[row]\n"),
            ("last=start + chosen.lengths - 1", "last=start + chosen.lengths - 2"),
            ('moved["token_columns"] = {name: x.to(device)', 'moved["token_columns"] = {name: x'),
        ],
    ),
    (
        "ppo_core/packing.py",
        "tests/ppo_core/test_batch.py",
        [
            (
                "torch.argsort(lengths, descending=True, stable=True)\n    longest",
                "torch.argsort(lengths)\n    longest",
            ),
            ("allowed[i - 1] = True", "pass"),
            ("cost[:i] + area + group_cost", "area + group_cost"),
            ("cost[:i] + area + group_cost", "cost[:i] + area"),
            ("allowed = area <= token_budget", "allowed = area <= 2 * token_budget"),
            ("if token_budget < 1:", "if token_budget < 0:"),
            ("room = max(packed_length, *lengths)", "room = 2 * max(packed_length, *lengths)"),
            ("place = bisect_left(free, (lengths[row], 0))", "place = len(free)"),
            ("place = bisect_left(free, (lengths[row], 0))", "place = min(len(free), 0)"),
            ("insort(free, (left - lengths[row], packed_row))", "insort(free, (left, packed_row))"),
            ("insort(free, (left - lengths[row], packed_row))", "free.append((left - lengths[row], packed_row))"),
            ("permutation.tensor_split(num_minibatches)", "permutation.split(num_minibatches)"),
            ("row_uniforms([seed], num_rows)", "row_uniforms([0], num_rows)"),
            ("1 <= num_minibatches <= num_rows", "1 <= num_minibatches"),
            ("torch.argsort(row_uniforms([seed], num_rows)[0], stable=True)", "torch.arange(num_rows).roll(seed)"),
        ],
    ),
    (
        "ppo_core/sampling.py",
        "tests/ppo_core/test_sampling.py",
        [
            # sample
            ("self.uniforms[rows, t]", "self.uniforms[: len(rows), t]"),
            ("self.uniforms[rows, t]", "self.uniforms[rows, 0]"),
            ("self.lengths[rows] += live", "self.lengths[rows] += 1"),
            ("self.stopped[rows] |= finished & live", "self.stopped[rows] |= live"),
            ("return drawn, live & ~finished", "return drawn, ~finished"),
            ("finished |= self._stopped_by_caller", "finished = self._stopped_by_caller"),
            ("finished = torch.isin(drawn, self._stop_ids)", "finished = drawn == 0"),
            ("torch.arange(self.max_length, device=self.device) < self", "torch.arange(self.max_length) <= self"),
            ("on_tokens(done - self._told)", "on_tokens(done)"),
            ("self._seen_by_caller[row].append(token)", "self._seen_by_caller[row] = [token]"),
            ("verdicts.append(is_live and should_stop", "verdicts.append(should_stop"),
            ("@torch.no_grad()", "@torch.inference_mode()"),
            ("if len(seeds) != num_rows:", "if False:"),
            ("if (prompts.lengths == 0).any():", "if False:"),
            ("torch.arange(num_rows) // samples_per_prompt", "torch.arange(num_rows) % len(prompts)"),
            # draw_tokens
            ("z = at_least_float32(logits) / sampling.temperature", "z = at_least_float32(logits)"),
            ("- total.log().to(z.dtype)", "- likely.sum(dim=-1).log().to(z.dtype)"),
            ("weights = (z - largest).exp_()", "weights = z.exp()"),
            ("drawn = _first_beyond(likely, ", "drawn = _first_beyond(weights, "),
            ("weights.index_fill_(-1, suppressed, 0.0)", "z.index_fill_(-1, suppressed, 0.0)"),
            ("searchsorted(blocks, target[:, None], right=True)", "searchsorted(blocks, target[:, None])"),
            ("uniforms.clamp(max=below_one) * blocks[:, -1]", "uniforms.clamp(max=below_one)"),
            ("target[:, None] - before, inside", "target[:, None], inside"),
            ("inside[:, -1:] * below_one)", "inside[:, -1:])"),
            (".masked_fill(ids >= vocabulary, 0)", ""),
            # keep_likely
            ("ranked[:, sampling.top_k :] = 0", "ranked[:, sampling.top_k + 1 :] = 0"),
            ("mass_before < sampling.top_p * ranked.sum(dim=-1, keepdim=True)", "mass_before < sampling.top_p"),
            ("mass_before = ranked.cumsum(dim=-1) - ranked", "mass_before = ranked.cumsum(dim=-1)"),
            ("sort(dim=-1, descending=True", "sort(dim=-1, descending=False"),
        ],
    ),
    (
        "ppo_core/decoding.py",
        "tests/ppo_core/test_decoding.py tests/ppo_core/test_sampling.py",
        [
            # with_cache
            ('is_real = prompts.mask(side="left")', 'is_real = prompts.mask(side="right")'),
            ("attention_mask=mask[:, :width] if has_padding else None", "attention_mask=None"),
            ("has_padding = not bool(is_real.all())", "has_padding = False"),
            ("said.logits[:, -1].repeat_interleave(repeats, dim=0)", "said.logits[:, -1].repeat(repeats, 1)"),
            ("lengths=prompts.lengths.to(drawing.device).repeat_int", "lengths=1 + prompts.lengths.repeat_int"),
            ("position_ids=lengths[:, None] + t,", "position_ids=lengths[:, None],"),
            ("                keep_rows(cache, keep)\n", ""),
            ("_LIVE_SHARE_TO_SHRINK = 0.75", "_LIVE_SHARE_TO_SHRINK = 0.25"),
            ("            if num_live == 0 or t + 1", "            if t + 1"),
            ("chosen * repeats + torch.arange(repeats)", "chosen * repeats + 0 * torch.arange(repeats)"),
            ("            state.t += 1\n", ""),
            # by_generate, whole
            ("attention_mask=torch.ones_like(ids),", ""),
            ("inner.generation_config = type(before)()", "pass"),
            ("inner.generation_config = before", "pass"),
            (
                "torch.cat([ids, drawn[:, None]], dim=1)[live], rows[live]",
                "torch.cat([ids, drawn[:, None]], dim=1)[live], rows",
            ),
            # which way
            ("return False\n    return True", "return True\n    return True"),
            ("for way in (with_cache, by_generate, whole) if", "for way in (whole, with_cache, by_generate) if"),
            ("if found is None:", "if False:"),
            ("        except (torch.OutOfMemoryError, MemoryError):\n            raise\n", ""),
            ("_ways[inner] = found", "pass"),
            ("if given is None or not", "if given is not None and not"),
            ("if name in _CACHE_ARGUMENTS), _CACHE_ARGUMENTS[0])", "if False), _CACHE_ARGUMENTS[0])"),
            ("if hands_on and hasattr(model", "if False and hasattr(model"),
            ("[*parameters, *(_argument_names(model.model) if hands_on", "[*(_argument_names(model.model) if hands_on"),
        ],
    ),
    (
        "ppo_core/kv_cache.py",
        "tests/ppo_core/test_sampling.py tests/ppo_core/test_accelerator.py",
        [
            ("layer.is_compileable = has_padding", "layer.is_compileable = False"),
            ("buffer[:num_rows, :, before:end] = new", "buffer[:num_rows, :, before - 1 : end - 1] = new"),
            ("x.index_select(0, rows)", "x[: len(rows)]"),
            (".copy_(x[:, None])", ".copy_(x[:, None].flip(0))"),
            ("elif repeats > 1:", "elif False:"),
        ],
    ),
    (
        "ppo_core/randomness.py",
        "tests/ppo_core/test_randomness.py",
        [
            # derive_seed
            ("digest.update(kind + len(text)", "digest.update(len(text)"),
            ('kind + len(text).to_bytes(8, "little") + text', "kind + text"),
            ('"little") >> 1', '"little")'),
            ('"little") >> 1', '"big") >> 1'),
            # row_uniforms
            (
                "_mix(np.array([seed & (2**64 - 1) for seed in seeds], dtype=np.uint64))",
                "np.array(seeds, dtype=np.uint64)",
            ),
            ("np.arange(1, num_positions + 1", "np.arange(0, num_positions"),
            ("(bits >> np.uint64(11)).astype(np.float64) * 2.0**-53", "bits.astype(np.float64) * 2.0**-64"),
            ("(x ^ (x >> np.uint64(30)))", "(x ^ (x >> np.uint64(31)))"),
            ("return x ^ (x >> np.uint64(31))", "return x"),
        ],
    ),
    (
        "ppo_core/forward.py",
        "tests/ppo_core/test_forward.py",
        [
            (
                "return at_least_float32(logits[padded.predicts_response]) / temperature",
                "return logits[padded.predicts_response] / temperature",
            ),
            ("logits[padded.predicts_response]) / temperature", "logits[padded.predicts_response])"),
            ("gather_logprobs(logits, padded.response_ids)", "gather_logprobs(logits, padded.response_ids.flip(0))"),
            ('"bias": head.bias, "temperature": temperature, "dtype"', '"bias": head.bias, "dtype"'),
            ('else {"position_ids": padded.position_ids}', "else {}"),
            ("{min(token_budget, round(", "{min(2**40, round("),
            ("min(_MOST_WIDTHS, _ROWS_TO_PLACE // len(own))", "0"),
            ("_WIDEST = 5\n", "_WIDEST = 1\n"),
            ("width * (1 + width / _PAIRS_TO_A_TOKEN)", "width"),
            ("if not all(can_pack(model) for model in models):", "if False:"),
            ('model.body if isinstance(model, HeadCritic) else getattr(model, "base_model", model)', "model"),
            ("0.05 * _largest(as_one - alone)", "0"),
            ("0.05 * _largest(as_one - alone)", "_largest(alone)"),
            ("torch.tensor([[0, 1, 2, 0, 1]])", "torch.arange(5)[None]"),
            ("x.new_zeros(mask.shape).masked_scatter(mask, x)", "x.new_ones(mask.shape).masked_scatter(mask, x)"),
            (
                "x.new_zeros(mask.shape).masked_scatter(mask, x)",
                "x.new_zeros(mask.shape).masked_scatter(mask, x.detach())",
            ),
            (
                "return response_and_final_values(critic, padded)[0]",
                "return response_and_final_values(critic, padded)[0].detach()",
            ),
            ("values[padded.predicts_response]", "values.roll(1)[padded.predicts_response]"),
            ("values.flatten()[padded.last]", "values[:, -1]"),
            ("values = at_least_float32(values)", "pass"),
            ("if values.shape != padded.input_ids.shape:", "if False:"),
        ],
    ),
    (
        "ppo_core/heads.py",
        "tests/ppo_core/test_forward.py",
        [
            ("torch.equal(at_least_float32(parts), at_least_float32(logits))", "True"),
            ("torch.equal(at_least_float32(parts), at_least_float32(logits))", "torch.allclose(parts, logits)"),
        ],
    ),
    (
        "ppo_core/update.py",
        "tests/ppo_core/test_update.py tests/ppo_core/test_update_formulas.py tests/ppo_core/test_laws.py",
        [
            ("len(policy.minibatches) / policy.epochs", "len(policy.minibatches)"),
            ("len(policy.minibatches) / policy.epochs", "1"),
            ("config.critic_epochs or config.epochs", "config.epochs"),
            ("max_grad_norm=config.critic_max_grad_norm", "max_grad_norm=config.max_grad_norm"),
            ("derive_seed(seed, epoch)", "derive_seed(seed, 0)"),
            ("derive_seed(seed, epoch)", "derive_seed(0, epoch)"),
            ("num_tokens=len(minibatch.responses.values)", "num_tokens=len(batch.responses.values)"),
            ("num_responses=len(minibatch) if", "num_responses=len(batch) if"),
            ('num_responses=len(minibatch) if config.aggregation == "seq_mean" else None', "num_responses=None"),
            ("    training.optimizer.zero_grad()\n    groups = ", "    groups = "),
            ("                training.optimizer.step()\n", "                pass\n"),
            ("on_tokens(len(padded.response_ids))", "on_tokens(padded.response_mask.numel())"),
            ('if before_step is not None and name == "policy":', "if before_step is not None:"),
            ("MinibatchStats(epoch=epoch, minibatch=number,", "MinibatchStats(epoch=epoch, minibatch=epoch,"),
            (
                '                if before_step is not None and name == "policy":\n'
                "                    before_step(MinibatchStats(epoch=epoch, minibatch=number, values=stats))\n"
                "                training.optimizer.step()\n",
                "                training.optimizer.step()\n"
                '                if before_step is not None and name == "policy":\n'
                "                    before_step(MinibatchStats(epoch=epoch, minibatch=number, values=stats))\n",
            ),
            (
                'if name == "policy" and config.target_kl is not None',
                'if "approx_kl" in stats and config.target_kl is None',
            ),
            ("training.minibatches[-config.num_minibatches :]", "training.minibatches"),
            ('mean_of([stats["approx_kl"] for stats in latest])', 'max([stats["approx_kl"] for stats in latest])'),
            ('mean_of([stats["approx_kl"] for stats in latest])', 'mean_of([stats["k1_kl"] for stats in latest])'),
            ("on_trained(name)\n", 'on_trained("policy")\n'),
            ('policy.minibatches[0]["ratio_max_deviation"]', 'policy.minibatches[-1]["ratio_max_deviation"]'),
            ('found["num_optimizer_steps"] = len(policy.minibatches)', 'found["num_optimizer_steps"] = policy.epochs'),
            ('found["policy_epochs"] = policy.epochs', 'found["policy_epochs"] = len(policy.minibatches)'),
            (
                'explained_variance(columns["values"], columns["returns"]',
                'explained_variance(columns["returns"], columns["values"]',
            ),
            ("num_tokens=len(batch.responses.values), **found", "num_tokens=len(batch), **found"),
            ("if value is not None}", "}"),
            ("if policy is None and critic is None:", "if False:"),
            ("if model is not None and optimizer is None:", "if False:"),
            ('== "exact" and reference is None:', '== "exact" and False:'),
            ('needed.append("ref_logprobs")', "pass"),
            ('needed += ["values", "returns"]', 'needed += ["returns"]'),
            ('needed += ["logprobs", "advantages"]', 'needed += ["advantages"]'),
            ("if missing := [name for name in needed if name not in batch.token_columns]:", "if missing := []:"),
        ],
    ),
    (
        "ppo_core/training.py",
        "tests/ppo_core/test_update.py tests/ppo_core/test_update_formulas.py tests/ppo_core/test_laws.py",
        [
            ('if stats["grad_norm"] > self.max_grad_norm:', "if False:"),
            ('_MAXIMA = ("ratio_max_deviation",)', "_MAXIMA = ()"),
            ('(math.isfinite(stats["loss"]) and math.isfinite(stats["grad_norm"]))', "True"),
            ("return sum(values) / len(values)", "return values[-1]"),
        ],
    ),
    (
        "ppo_core/shares.py",
        "tests/ppo_core/test_laws.py::test_2_the_number_of_processes_does_not_change_loss_and_gradient "
        "tests/ppo_core/test_laws.py::test_2_with_shares_the_number_of_processes_changes_no_bit "
        "tests/ppo_core/test_laws.py::test_2_gradients_of_four_shares_are_added_in_pairs",
        [
            ("            make(first + sharing.rank)\n", "            make(first)\n"),
            ("            distributed.all_reduce(own, group=sharing.group)\n", ""),
            ("        if kind is None:\n            total.append(None)\n            continue\n", ""),
            (
                "range(first + begin, first + begin + each * step, step)",
                "range(first + begin, first + begin + step, step)",
            ),
            ("else (sharing.rank * each, 1)", "else (0, 1)"),
            ("total = added(total, of_round)", "total = of_round"),
            ("for number in sorted(everywhere)", "for number in everywhere"),
            ("                    parameter.grad = None\n", "                    pass\n"),
        ],
    ),
    (
        "ppo_core/shares.py",
        "tests/tasks/test_in_parts.py "
        "tests/tasks/test_train_together.py::test_an_update_in_parts_by_two_processes_has_the_bytes_of_one",
        [
            ("    one(0.0)\n", "    one(1.0)\n"),
            ("        elif sharing.in_parts:\n", "        else:\n"),
            ("(sharing.rank, sharing.size) if any(parted)", "(sharing.rank * each, 1) if any(parted)"),
            ("branch.add(_over_processes(own, parted, sharing) if any(parted) else own)", "branch.add(own)"),
            ("gradient if is_parted else next(summed)", "gradient"),
        ],
    ),
    (
        "ppo_core/tree.py",
        "tests/ppo_core/test_laws.py::test_2_gradients_of_four_shares_are_added_in_pairs "
        "tests/ppo_core/test_laws.py::test_2_with_shares_the_number_of_processes_changes_no_bit",
        [("self._branches[-1][0] == size", "self._branches[-1][0] >= size")],
    ),
    (
        "ppo_core/shares.py",
        "tests/ppo_core/test_families_in_parts.py",
        [
            ("gradient if is_reached or not is_parted else None", "gradient"),
            ("gradient if is_reached or not is_parted else None", "gradient if is_reached else None"),
            ("[any(column) for", "[all(column) for"),
        ],
    ),
    (
        "ppo_core/sharded.py",
        "tests/ppo_core/test_families_in_parts.py",
        [
            ("set_reduce_scatter_unused_params(True)", "set_reduce_scatter_unused_params(False)"),
            ("    _reached.clear()\n", ""),
            ("                if not is_in_parts(weights) and", "                if"),
            ("lambda _, own=own: _reached.add(own)", "lambda _: _reached.add(own)"),
            ("            if in_order:\n", "            if False:\n"),
            ("            tree.add([own])\n", "            tree.add([own.flip(0)])\n"),
        ],
    ),
    (
        "ppo_core/clipping.py",
        "tests/ppo_core/test_clipping.py tests/tasks/test_in_parts.py tests/ppo_core/test_families_in_parts.py "
        "tests/tasks/test_train_together.py::test_an_update_in_parts_by_two_processes_has_the_bytes_of_one",
        [
            (" and not has_parts", ""),
            ("if sharing.shares == 1 and", "if"),
            ("(parts if is_in_parts(gradient) else whole_ones)", "parts"),
            ("        distributed.all_reduce(parts, group=sharing.group)\n", "        pass\n"),
            (".sqrt().to(torch.promote_types(like.dtype, torch.float32))", ".sqrt()"),
            ("torch.promote_types(like.dtype, torch.float32)", "torch.float32"),
            ("torch.promote_types(like.dtype, torch.float32)", "like.dtype"),
            ("else torch.float64", "else torch.float32"),
            (", dim=-1) if gradient.ndim > 1", ") if gradient.ndim > 1"),
            (".clamp(max=1.0)", ""),
        ],
    ),
    (
        "ppo_core/sharded.py",
        "tests/tasks/test_in_parts.py "
        "tests/tasks/test_train_together.py::test_an_update_in_parts_by_two_processes_has_the_bytes_of_one",
        [
            ("set_gradient_divide_factor(1.0)", "set_gradient_divide_factor(2.0)"),
            ("    ignored = set(left_whole)\n", "    ignored = set[nn.Parameter]()\n"),
            ("            parameter.to_local().copy_(given.to_local())\n", ""),
            ("            distributed.broadcast(values, 0)\n", ""),
            ("    if isinstance(inner, HeadCritic):\n", "    if False:\n"),
            ("        root.reshard()\n", "        pass\n"),
        ],
    ),
    (
        "ppo_core/training.py",
        "tests/ppo_core/test_laws.py::test_2_the_number_of_processes_does_not_change_loss_and_gradient",
        [
            ("torch.maximum(whole[name], value) if name in _MAXIMA else whole[name] + value", "whole[name] + value"),
        ],
    ),
    (
        "ppo_core/config.py",
        "tests/ppo_core/test_laws.py::test_2_shares_that_processes_cannot_add_up_in_one_order_are_refused "
        "tests/ppo_core/test_laws.py::test_2_shares_that_each_process_has_a_branch_of_are_taken",
        [
            ("rest == 0 and each & (each - 1) == 0", "rest == 0"),
            ("rest == 0 and each & (each - 1) == 0", "each & (each - 1) == 0"),
            ("shares == 1 or processes == 1 or", "shares == 1 or"),
        ],
    ),
    (
        "ppo_core/config.py",
        "tests/ppo_core/test_ppo_config.py",
        [
            # SamplingConfig
            ("if not 0 < self.temperature < math.inf:", "if not 0 <= self.temperature < math.inf:"),
            ("if not 0 < self.temperature < math.inf:", "if not 0 < self.temperature <= math.inf:"),
            ("if not 0 < self.top_p <= 1:", "if not 0 <= self.top_p <= 1:"),
            ("if not 0 < self.top_p <= 1:", "if not 0 < self.top_p:"),
            ("if self.top_k < 0:", "if self.top_k < -1:"),
            ("any(token_id < 0", "all(token_id < 0"),
            ('_require_at_least_one("max_new_tokens"', 'print("max_new_tokens"'),
            # PPOConfig
            ("(0 < below < 1 and 0 < above < math.inf)", "(0 < below <= 1 and 0 < above < math.inf)"),
            ("(0 < below < 1 and 0 < above < math.inf)", "(0 <= below < 1 and 0 < above < math.inf)"),
            ("(0 < below < 1 and 0 < above < math.inf)", "(0 < below < 1 and 0 < above <= math.inf)"),
            ("(0 < below < 1 and 0 < above < math.inf)", "(0 < below < 1 and 0 <= above < math.inf)"),
            ("(0 < below < 1 and 0 < above < math.inf)", "(0 < below < 1 and 0 < above < 1)"),
            ("not self.cliprange_value > 0:", "not self.cliprange_value >= 0:"),
            ("not self.dual_clip > 1:", "not self.dual_clip >= 1:"),
            ("(cliprange, cliprange)", "(cliprange, 2 * cliprange)"),
            (" or self.dual_clip is not None):", "):"),
            ('(self.cliprange != _default("cliprange") or ', "("),
            ("if not 0 <= getattr(self, name) < math.inf:", "if not 0 < getattr(self, name) < math.inf:"),
            ("if not 0 <= getattr(self, name) < math.inf:", "if not 0 <= getattr(self, name) <= math.inf:"),
            ("if not 0 <= getattr(self, name) < math.inf:", "if not -1 <= getattr(self, name) < math.inf:"),
            ('for name in ("kl_loss_coef", "entropy_coef", "vf_coef"):', 'for name in ("kl_loss_coef",):'),
            (
                '(self.kl_loss_estimator, self.kl_loss_direction) != ("k3", "reverse")',
                'self.kl_loss_estimator != "k3"',
            ),
            (
                '(self.kl_loss_estimator, self.kl_loss_direction) != ("k3", "reverse")',
                'self.kl_loss_direction != "reverse"',
            ),
            ("not self.target_kl > 0:", "not self.target_kl >= 0:"),
            ('_require_at_least_one("epochs"', 'print("epochs"'),
            ('_require_at_least_one("critic_epochs"', 'print("critic_epochs"'),
            ('_require_at_least_one("num_minibatches"', 'print("num_minibatches"'),
            ("if not getattr(self, name) > 0:", "if getattr(self, name) <= 0:"),
            ("if not getattr(self, name) > 0:", "if not getattr(self, name) >= 0:"),
            ("if getattr(self, name) not in values:", "if False:"),
            ("if not value >= 1:", "if not value >= 0:"),
        ],
    ),
    (
        "ppo_core/shapes.py",
        "tests/ppo_core/test_public_api.py tests/ppo_core/test_losses.py",
        [
            ("if other.shape != first.shape:", "if other.dim() != first.dim():"),
            ("if other.shape != first.shape:", "if other.numel() > first.numel():"),
        ],
    ),
    (
        "ppo_core/__init__.py",
        "tests/ppo_core/test_public_api.py",
        [
            ("if name not in __all__:", "if not name:"),
            ('    "kl_loss",\n', ""),
        ],
    ),
    (
        "ppo_core/objectives.py",
        "tests/ppo_core/test_importance.py",
        [
            ("cap=config.importance_cap", "cap=2.0"),
            ("            weights=weights,\n        )\n    else:", "        )\n    else:"),
            ("num_responses=num_responses, weights=weights)", "num_responses=num_responses)"),
        ],
    ),
    (
        "ppo_core/objectives.py",
        "tests/ppo_core/test_update.py tests/ppo_core/test_update_formulas.py tests/ppo_core/test_laws.py",
        [
            (
                "logits = token_logits(policy, padded, temperature=temperature)",
                "logits = token_logits(policy, padded, temperature=1.0)",
            ),
            (
                "token_logprobs(policy, padded, temperature=temperature",
                "token_logprobs(policy, padded, temperature=1.0",
            ),
            ("loss = loss - config.entropy_coef", "loss = loss + config.entropy_coef"),
            (
                "            entropies, mask, num_tokens=num_tokens, num_responses=num_responses",
                "            entropies, mask, num_tokens=num_tokens",
            ),
            ("loss = loss + config.kl_loss_coef", "loss = loss - config.kl_loss_coef"),
            ("loss = loss + config.kl_loss_coef * of_minibatch", "loss = loss + of_minibatch"),
            ('if config.kl_loss_direction == "reverse" else', 'if config.kl_loss_direction == "forward" else'),
            ("direction=config.kl_loss_direction,", 'direction="reverse",'),
            ("estimator=kl_estimator,", 'estimator="k1",'),
            (
                "token_logits(reference, padded, temperature=temperature)",
                "token_logits(reference, padded, temperature=1.0)",
            ),
            (
                "aggregate_loss(of_tokens, mask, num_tokens=num_tokens, num_responses=num_responses)",
                "aggregate_loss(of_tokens, mask, num_tokens=num_tokens)",
            ),
            (
                'stats["kl_loss"] = of_minibatch.detach()',
                'stats["kl_loss"] = config.kl_loss_coef * of_minibatch.detach()',
            ),
            ('stats["policy_loss"] = loss.detach()', 'stats["policy_loss"] = -loss.detach()'),
            ("aggregate_loss(entropies.detach(), mask, num_tokens=counts.num_tokens)", "entropies.detach().mean()"),
            ("            dual_clip=config.dual_clip,\n", ""),
            ("            cliprange=config.cliprange,", "            cliprange=0.2,"),
            ('if config.loss == "ppo":', 'if config.loss == "pg":'),
            (
                "pg_loss(*given, num_tokens=num_tokens, num_responses=num_responses, weights=weights)",
                "pg_loss(*given, num_tokens=num_tokens, weights=weights)",
            ),
            (
                'columns["logprobs"], columns["advantages"], mask)',
                'new_logprobs.detach(), columns["advantages"], mask)',
            ),
            (
                'padded.token_columns["values"],\n        padded.token_columns["returns"],',
                'padded.token_columns["returns"],\n        padded.token_columns["values"],',
            ),
            ("cliprange_value=config.cliprange_value", "cliprange_value=None"),
            ("num_responses=counts.num_responses,", "num_responses=None,"),
        ],
    ),
    (
        "ppo_core/objectives.py",
        "tests/ppo_core/test_trunk.py",
        [
            ("loss = loss + config.vf_coef * own_loss", "loss = loss + own_loss"),
            ("loss = loss + config.vf_coef * own_loss", "loss = loss - config.vf_coef * own_loss"),
            ("stats |= own_stats", "pass"),
        ],
    ),
    (
        "ppo_core/forward.py",
        "tests/ppo_core/test_trunk.py tests/ppo_core/test_forward.py",
        [
            (
                "entropies, inner.values(hidden)[padded.predicts_response]",
                "entropies, inner.values(hidden.detach())[padded.predicts_response]",
            ),
        ],
    ),
    (
        "ppo_core/precision.py",
        "tests/ppo_core/test_heads.py",
        [
            ("with _head_in_float32(self.model):", "with nullcontext():"),
            ("torch.promote_types(dtype, head_dtype)", "dtype"),
            ("torch.promote_types(dtype, head_dtype)", "head_dtype"),
            ("return linear_in_float32(self.layer, hidden)", "return self.own(hidden)"),
            ("return self.own(at_least_float32(hidden), *args", "return self.own(hidden.bfloat16().float(), *args"),
            ("            del head.forward", "            pass"),
            ("            head.forward = own\n", "            del head.forward\n"),
        ],
    ),
    (
        "ppo_core/heads.py",
        "tests/ppo_core/test_heads.py",
        [
            ("linear_in_float32(self.head, hidden).squeeze(-1)", "self.head(hidden).float().squeeze(-1)"),
            ("head.weight, head.bias, model.head_dtype)", "head.weight, head.bias, model.dtype)"),
        ],
    ),
    (
        "ppo_core/logprobs.py",
        "tests/ppo_core/test_heads.py",
        [
            ("dtype or torch.promote_types(hidden.dtype, torch.float32)", "dtype or hidden.dtype"),
            ("@_without_autocast\n    def forward", "def forward"),
            ("@_without_autocast\n    def backward", "def backward"),
            ("torch.promote_types(dtype, weight.dtype)", "weight.dtype"),
            (
                "functional.linear(at_least_float32(hidden), at_least_float32(layer.weight), bias)",
                "functional.linear("
                "hidden.bfloat16(), layer.weight.bfloat16(), None if bias is None else bias.bfloat16()).float()",
            ),
        ],
    ),
    (
        "ppo_core/update.py",
        "tests/ppo_core/test_trunk.py",
        [
            ("trunk_critic = critic if shares_trunk(critic) else None", "trunk_critic = None"),
            ("own_critic = None if shares_trunk(critic) else critic", "own_critic = critic"),
        ],
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Changes to tasks/, noticed by tests/tasks/: entries as above.
# ---------------------------------------------------------------------------------------------------------------------
DATA: Table = [
    (
        "tasks/data/shapes/transcripts.py",
        "tests/tasks/test_transcripts.py tests/tasks/test_records.py",
        [
            ("    cut = cuts[0]\n", "    cut = cuts[-1]\n"),
            ("if len(cuts) > 1 and not template.turn_has_parts:", "if False:"),
            ("    elif _MARK.search(begin):\n        possible = []\n", ""),
            ("if template.needs_others and not others:", "if False:"),
            ("finditer(text, others[-1] if others else 0)", "finditer(text)"),
            ("if template.others.search(response) or", "if"),
            (
                "if template.end is not None and not template.turn_has_parts and _ends_early(template.end, response):",
                "if False:",
            ),
            ("possible = [entry for entry in possible if _begins(entry[0], begin)] or possible", "pass"),
            ("    if len(possible) > 1:\n        names =", "    if False:\n        names ="),
            ('_PREFILL.sub("", answer)', "answer"),
            (
                r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
                r"<\|start_header_id\|>assistant<\|end_header_id\|>",
            ),
        ],
    ),
    (
        "tasks/data/shapes/preferences.py",
        "tests/tasks/test_records.py tests/tasks/test_comparisons.py",
        [
            (
                "chosen, rejected = answers.values() if better == 0",
                "chosen, rejected = answers.values() if better == 1",
            ),
            ("ranks = [1] * len(good) + [2] * len(bad)", "ranks = [2] * len(good) + [1] * len(bad)"),
            ("[text for text in sides[is_good] if text not in contrary]", "list(sides[is_good])"),
            ("    if not same_messages(chosen[:-1], rejected[:-1]):\n        return PARTED\n", ""),
        ],
    ),
    (
        "tasks/data/shapes/columns.py",
        "tests/tasks/test_records.py tests/tasks/test_comparisons.py",
        [
            ("    if ends_with_opening(prompt):\n        return", "    if False:\n        return"),
            ("if len(prompt.split()) >= LONG_PROMPT:", "if False:"),
            ("if (answer := ends_with_answer(text)) is not None:", "if (answer := None) is not None:"),
            ("if (opening := begins_with_turn(text)) is not None:", "if (opening := None) is not None:"),
            ('if last not in ("user", "system", "developer", "tool", "ipython"):', "if False:"),
        ],
    ),
    (
        "tasks/data/shapes/records.py",
        "tests/tasks/test_records.py tests/tasks/test_comparisons.py",
        [
            ("if taken := sorted(TAKEN & extra.keys()):", "if taken := []:"),
        ],
    ),
    (
        "tasks/data/shapes/comparisons.py",
        "tests/tasks/test_comparisons.py tests/tasks/test_records.py",
        [
            ("FIRST if amount < 0 else SECOND", "SECOND if amount < 0 else FIRST"),
            ("FIRST if amount == 1 else SECOND", "SECOND if amount == 1 else FIRST"),
            ("ordered = sorted(set(scores), reverse=True)", "ordered = sorted(set(scores))"),
            ("if len(set(said.values())) > 1:", "if False:"),
            ('names[:1] if "winner" in names else names', "names"),
            ("(scores[i] - scores[j]) > 0", "(scores[i] - scores[j]) < 0"),
        ],
    ),
    (
        "tasks/data/shapes/conversations.py",
        "tests/tasks/test_conversations.py",
        [
            (
                "return {key: _without_nulls(part) for key, part in value.items() if part is not None}",
                "return dict(value)",
            ),
            ("if found is None and _LIKE_MESSAGES.match(value) and not _begins_with_json(value):", "if False:"),
            ("any(map(_is_message, found))", "all(map(_is_message, found))"),
            ("if isinstance(parsed, Mapping):", "if False:"),
            ("    if half := _HALF.search(text):", "    if half := None:"),
        ],
    ),
    (
        "tasks/yaml_text.py",
        "tests/tasks/test_yaml_text.py",
        [
            ("            if key.value in seen:", "            if False:"),
            ("if key.tag in (_NULL, _BOOL, _INT, _FLOAT):", "if False:"),
            ('if math.isinf(value) and "inf" not in text:', "if False:"),
            ('{"0o": 8, "0x": 16}.get(text[:2], 10)', "0"),
            ("    if len(text) > MAX_DIGITS:", "    if False:"),
            ("        if self.depth > MAX_DEPTH:", "        if False:"),
            ("    _require_few(_size(value, {}))", "    _size(value, {})"),
            ("                _require_few(self.num_merged)\n", ""),
            ("        self.depth -= 1\n", ""),
            ("if name not in written), *own]", "), *own]"),
            ("merged.setdefault(key.value, (key, value))", "merged[key.value] = (key, value)"),
            ("    if size is None:", "    if False:"),
        ],
    ),
    (
        "tasks/data/bad_rows.py",
        "tests/tasks/test_records.py",
        [
            ("if self.num_bad == self.num_rows else", "if False else"),
            ("        self.num_rows += 1\n", ""),
        ],
    ),
    (
        "tasks/data/sources.py",
        "tests/tasks/test_sources.py",
        [
            ("if name not in theirs and values.get(name) is not None:", "if False:"),
            ('("".join(format_of(file)), _file_digest(file))', "(file.suffix, _file_digest(file))"),
        ],
    ),
]

TASKS: Table = [
    (
        "tasks/text/endings.py",
        "tests/tasks/test_endings.py",
        [
            ("ids = {*declared_by(tokenizer), *_own_eos(tokenizer)}", "ids = {*_own_eos(tokenizer)}"),
            ("        ids.add(ending.ids[-1])\n", "        pass\n"),
            ("if token < len(tokenizer)", "if True"),
            ("and ending.stop_string is None", ""),
            ("if token in known), run[0][0])", "if token in known), run[-1][0])"),
            ("next((end for end, token in run if token in known), run[0][0])", "run[0][0]"),
            ("rest=tuple(_ids(tokenizer, text[end:]))", "rest=()"),
            ("text = turn.after.lstrip()", "text = turn.after"),
            ("and not isinstance(token, bool)", ""),
            ("        if ids:\n            return tuple(ids)", "        return tuple(ids)"),
            ("_find_ending, declared_by(tokenizer))", "_find_ending)"),
        ],
    ),
    (
        "tasks/text/chat_template.py",
        "tests/tasks/test_chat_template.py tests/tasks/test_endings.py",
        [
            ("if name in RESERVED:", "if False:"),
            ("        if name not in read:\n", "        if False:\n"),
            ("if CLOCK not in variables_of(tokenizer, template):", "if True:"),
            ("options_of(tokenizer).get(CLOCK, DATE)", "DATE"),
            ("                **options,\n", ""),
            (".removesuffix(opening or", ".removesuffix("),
            ("if start.startswith(opened) else None", ""),
            ("{{%- endmacro +%}}", "{{%- endmacro -%}}"),
            ("repr(options_of(tokenizer)), *more)", "*more)"),
        ],
    ),
    (
        "tasks/text/doubts.py",
        "tests/tasks/test_chat_template.py tests/tasks/test_endings.py",
        [
            ("if has_answers and turn.before is None:", "if turn.before is None:"),
            ("if has_system and turn.drops_system:", "if turn.drops_system:"),
        ],
    ),
    (
        "tasks/text/clock.py",
        "tests/tasks/test_chat_template.py tests/tasks/test_endings.py",
        [("day, month = _DAYS[date.weekday()]", "day, month = _DAYS[date.weekday() - 1]")],
    ),
    (
        "tasks/text/tokens.py",
        "tests/tasks/test_text.py tests/tasks/test_endings.py",
        [
            ("ending = None if plain else ending_of(tokenizer)", "ending = ending_of(tokenizer)"),
            ("*(ending.rest if to_the_end else ()))", "*ending.rest)"),
            ("or special.issuperset(whole[:n])", ""),
            ("if n == len(whole) or", "if"),
            ("if finished and ids and ids[-1] in", "if ids and ids[-1] in"),
            ("if finished and ending is not None and ending.stop", "if ending is not None and ending.stop"),
            ("bind_declared(tokenizer, directory)", "pass"),
        ],
    ),
    (
        "tasks/scoring/mixture.py",
        "tests/tasks/test_stages.py::test_models_of_others_pair_with_rewards_by_name_in_whatever_order_they_are_written",
        [("else external.get(name)", "else list(external.values())[list(rewards).index(name)]")],
    ),
    (
        "tasks/scoring/reward_models.py",
        "tests/tasks/test_reading.py",
        [
            ("finished=finished, special_tokens=True)", "finished=finished)"),
            ("finished=finished, special_tokens=True)", "finished=False, special_tokens=True)"),
            ("to_the_end = not model.is_calibrated", "to_the_end = False"),
            ("to_the_end = not model.is_calibrated", "to_the_end = True"),
        ],
    ),
    (
        "tasks/sampling/engines/vllm_rows.py",
        "tests/tasks/test_samplers.py",
        [
            ("Ended(row.token_ids[:length], row.logprobs[:length], True)", "Ended(row.token_ids, row.logprobs, True)"),
            ('"ignore_eos": True', '"ignore_eos": False'),
            ('row.finish_reason == "stop")', "False)"),
            ('if row.finish_reason == "length" and', "if False and"),
        ],
    ),
    (
        "tasks/sampling/engines/vllm_server.py",
        "tests/tasks/test_samplers.py",
        [
            ("trust_env=False", "trust_env=True"),
            (" and not isinstance(x, bool)", ""),
            ("if response.status_code >= 500 or", "if"),
        ],
    ),
    (
        "tasks/sampling/engines/vllm_servers.py",
        "tests/tasks/test_samplers.py tests/tasks/test_several_servers.py",
        [
            ("stop_strings, seeds[i])", "stop_strings, seeds[0])"),
            ("rows[i] for i in range(len(seeds))", "rows[i] for i in rows"),
        ],
    ),
    (
        "tasks/sampling/engines/vllm_push.py",
        "tests/tasks/test_samplers.py tests/tasks/test_several_servers.py",
        [
            ('if answer.get("success") is True:', "if True:"),
            ("        if not policy.tied:\n            raise\n", "        raise\n"),
        ],
    ),
    (
        "tasks/generate_rollouts.py",
        "tests/tasks/test_generate_rollouts.py",
        [
            ("        seen[prompt] += 1\n", ""),
            ("for s in (shard, shard + 1))", "for s in (0, config.shards))"),
        ],
    ),
    (
        "tasks/sampling/sampler.py",
        "tests/tasks/test_generate_rollouts.py",
        [
            ("before[i // samples_per_prompt] * samples_per_prompt + i", "before[i // samples_per_prompt] + i"),
            ("tuple(sorted({*sampling.suppress_token_ids, *unknown}))", "sampling.suppress_token_ids"),
        ],
    ),
    (
        "tasks/sampling/sampler.py",
        "tests/tasks/test_samplers.py",
        [
            (
                'logprobs=ours, **{SAMPLING_LOGPROBS: batch.token_columns["logprobs"]}',
                'logprobs=batch.token_columns["logprobs"], **{SAMPLING_LOGPROBS: ours}',
            ),
            ("                    self._prove(name, replica, sampling)\n", "                    pass\n"),
        ],
    ),
    (
        "tasks/sampling/engines/agreement.py",
        "tests/tasks/test_samplers.py",
        [
            ("float32: 1e-4", "float32: 1e-3"),
            ("bfloat16: 0.03", "bfloat16: 0.3"),
            ("difference.max() if is_exact else difference.mean()", "difference.mean()"),
            ("difference.max() if is_exact else difference.mean()", "difference.max()"),
            ("if sampling.temperature != 1:", "if False:"),
            ("        top_p=1.0,\n        top_k=0,\n", ""),
            ("        stop_token_ids=(),\n", ""),
            ("        suppress_token_ids=(),\n", ""),
            ("min(PROOF_TOKENS, sampling.max_new_tokens)", "sampling.max_new_tokens"),
            ('derive_seed(context.run_seed, "proof", i)', 'context.seed("proof", i)'),
            (
                "(engines - logprobs(batch, sampling.temperature)).abs()",
                "(engines - logprobs(batch, sampling.temperature))",
            ),
            ("context.health.max_engine_difference or ROUNDING[dtype]", "ROUNDING[dtype]"),
            ("difference = (ours - engines).abs()", "difference = ours - engines"),
        ],
    ),
    (
        "tasks/sampling/engines/policy_files.py",
        "tests/tasks/test_samplers.py",
        [
            ("shutil.rmtree(copy, ignore_errors=True)", "pass"),
            ("tied=tied_weights(policy.model if context.lora_base is None else policy.model.model)", "tied={}"),
            ("if not self.tied:", "if True:"),
            ('index["weight_map"] |= dict.fromkeys(self.tied, TIED_FILE)', "pass"),
            ("            (directory / INDEX_FILE).unlink()\n", ""),
            ("symlink_to(path.resolve())", "symlink_to(path.name)"),
        ],
    ),
    (
        "tasks/sampling/engines/vllm_in_process.py",
        "tests/tasks/test_samplers.py",
        [
            ("str(directory)}", "str(policy.directory)}"),
            ("        if not policy.tied:\n            raise\n", "        raise\n"),
            ('"raw_logprobs" if temperature == 1 else "processed_logprobs"', '"raw_logprobs"'),
            ("        if sleeps:\n            llm.wake_up()\n", ""),
            ("    if sleeps:\n        llm.sleep(level=1)\n", "    llm.sleep(level=1)\n"),
            ("if lora_base is None:\n            reload", "if True:\n            reload"),
            ("    if llm.reset_prefix_cache() is False:", "    if False:"),
        ],
    ),
    (
        "tasks/compute_advantages.py",
        "tests/tasks/test_algorithms.py tests/tasks/test_stages.py",
        [
            ("kl_coef = config.kl_coef if config.kl_target is None or before", "kl_coef = config.kl_coef if before"),
            ("before.kl_coef is None else before.kl_coef", "before.kl_coef is None else config.kl_coef"),
            ("scores=before.scores.with_scores(counting)", "scores=before.scores"),
            ("moments=state.scores if config.normalize_scores else None", "moments=None"),
            ("treated_by(config, scores, cut_off, batch", "treated_by(config, scores, ~cut_off, batch"),
            ("batch.responses.lengths, after)", "batch.responses.lengths, before)"),
            ("cut_off_penalty=config.length_cut.penalty", "cut_off_penalty=0.0"),
            ("keep_cut_off=config.scores_count_when_cut_off", "keep_cut_off=True"),
            ("scores if config.scores_count_when_cut_off else scores[~cut_off]", "scores"),
            ("before.told_length_cut or tell_of", "tell_of"),
            ("finished[prompt] > 1", "finished[prompt] > 0"),
            ("penalty=config.length_cut.ramp_penalty", "penalty=1.0"),
            ("kl = kl[kept, : mask.shape[1]]", "kl = kl[: len(mask), : mask.shape[1]]"),
            ("torch.where(stopped, 0.0, final_values)", "torch.where(stopped, final_values, 0.0)"),
            ("horizon=config.horizon,", "horizon=None,"),
            ("gamma=config.gamma,", "gamma=1.0,"),
            ("group_advantages(rewards.sum(1), groups", "group_advantages(rewards[:, -1], groups"),
            ('(config.whiten is None and config.algorithm == "ppo")', "config.whiten is None"),
            (
                'padded_column(table, "logprobs"), padded_column(table, "ref_logprobs")',
                'padded_column(table, "ref_logprobs"), padded_column(table, "logprobs")',
            ),
        ],
    ),
    (
        "tasks/config/advantages.py",
        "tests/tasks/test_algorithms.py tests/tasks/test_stages.py",
        [("not (self.bootstrap or self.length_cut.exclude", "not (self.length_cut.exclude")],
    ),
    (
        "tasks/update_policy.py",
        "tests/tasks/test_algorithms.py tests/tasks/test_stages.py",
        [
            (
                "InPrecision(checkpoint.policy.model, dtype, head_dtype) if config.train_policy else None",
                "InPrecision(checkpoint.policy.model, dtype)",
            ),
            ("temperature=config.temperature,", "temperature=1.0,"),
            ("before_step=lambda minibatch: require_health(gates, context, minibatch, dtype),", ""),
            ("shutil.copyfile(experience.directory / STATE_FILE", "shutil.copyfile(policy.directory / STATE_FILE"),
            ("if minibatch.epoch == minibatch.minibatch == 0:", "if False:"),
        ],
    ),
    (
        "tasks/contract/gates.py",
        "tests/tasks/test_algorithms.py",
        [
            ("if not value <= limit:", "if value < limit:"),
            ("if not value >= limit:", "if value > limit:"),
            ('if self._context.health.action == "stop" and can_stop:', "if can_stop:"),
            ("self.warnings.add(limit_name)", "pass"),
        ],
    ),
    (
        "tasks/scoring/held_out_pairs.py",
        "tests/tasks/test_reward_model_quality.py",
        [
            ("right - mean", "right"),
            ("total**2 for total", "abs(total) for total"),
            ("is_right = margin > 0", "is_right = margin >= 0"),
        ],
    ),
    (
        "flows/labels/agreement.py",
        "tests/flows/test_labels.py",
        [
            (
                "expected = squared_differences(values) / (len(values) - 1)",
                "expected = squared_differences(values) / len(values)",
            ),
            ("squared_differences(unit) / (len(unit) - 1) for unit", "squared_differences(unit) / len(unit) for unit"),
            ("if len(unit) > 1]", "if len(unit) > 0]"),
            ("(ranks[j] > ranks[i]) - (ranks[j] < ranks[i])", "int(ranks[j] > ranks[i])"),
            ("queue.tasks[task_id].repeats is None", "True"),
            ("[-score for score in known]", "known"),
            ("firsts += answer.shown[0] in best", "firsts += 0 in best"),
            ("if mine and theirs:", "if mine:"),
        ],
    ),
    (
        "flows/labels/close.py",
        "tests/flows/test_labels.py",
        [
            ("2 * (other > own[i]) + (other == own[i])", "2 * (other > own[i])"),
            ("2 * (other > own[i]) + (other == own[i])", "2 * (other < own[i]) + (other == own[i])"),
            ('if len(set(row["ranks"])) > 1', "if True"),
            ("os.link(temporary, path)", "temporary.rename(path)"),
            ("answer.time > closed", "answer.time < closed"),
        ],
    ),
    (
        "flows/labels/annotations.py",
        "tests/flows/test_labels.py",
        [
            ("1 + sum(other < own for other in ranks)", "1 + sum(other <= own for other in ranks)"),
            ("if annotation.answer_id not in known", "if True"),
            ("return isinstance(value, int) and not isinstance(value, bool)", "return isinstance(value, int)"),
        ],
    ),
    (
        "tasks/store/files.py",
        "tests/flows/test_labels.py tests/flows/test_notes.py",
        [('(b"" if is_whole_line else b"\\n") + lines', "lines")],
    ),
    (
        "flows/runs/notes.py",
        "tests/flows/test_notes.py",
        [
            ("if OWN.fullmatch(address) is None:", "if False:"),
            ("(?![/\\\\])", ""),
            ("\\x00-\\x20", ""),
            ("if not note.is_removed", "if True"),
            ("reversed(found.values())", "found.values()"),
            ("len(text) > LONGEST_NOTE", "False"),
        ],
    ),
    (
        "flows/labels/assignment.py",
        "tests/flows/test_labels.py",
        [
            ("(other != annotator and not answer.skipped)", "(other != annotator)"),
            ("ago[task.repeats] > BETWEEN_REPEATS", "ago[task.repeats] > 0"),
            ("asked {annotator} {task.task_id}", "asked {task.task_id}"),
            ("shown {annotator} {task.task_id} {i}", "shown {task.task_id} {i}"),
            ("task.task_id not in held", "True"),
        ],
    ),
    (
        "flows/labels/choose.py",
        "tests/flows/test_labels.py",
        [
            ('key=lambda row: (-row["round"], -row["iteration"])', 'key=lambda row: row["round"]'),
            ('own[-1]["score"] - own[0]["score"]', 'own[0]["score"] - own[-1]["score"]'),
            ("key=lambda found: (-found[0],", "key=lambda found: (found[0],"),
            ('re.sub(NUMBER_OF_COPY, "", row["prompt_id"])', 'row["prompt_id"]'),
        ],
    ),
    (
        "flows/pages/guard.py",
        "tests/flows/test_label_pages.py tests/flows/test_pages.py",
        [
            ('scope["annotator"] = self._annotator(cookies, queue)', 'scope["annotator"] = next(iter(people), None)'),
            ("if first == ANSWERS:", "if False:"),
            (
                'next((name for name, own in people.items() if is_same(own, given or "")), None)',
                "next(iter(people), None)",
            ),
        ],
    ),
    (
        "tasks/train_reward_model.py",
        "tests/tasks/test_reward_model_quality.py",
        [
            ("accuracy - error > limit", "accuracy > limit"),
            ("accuracy - error > limit", "accuracy + error > limit"),
            ("limit == 0 or accuracy", "accuracy"),
            ('can_stop=quality["preferences"] >= FEWEST_TO_STOP_BY', 'can_stop=quality["pairs"] >= FEWEST_TO_STOP_BY'),
            ("context.health.min_reward_model_accuracy, gates", "0.0, gates"),
        ],
    ),
    (
        "tasks/scoring/functions.py",
        "tests/tasks/test_reward_functions.py",
        [
            ('{**row, **json.loads(row.pop("extra") or "{}")}', '{**json.loads(row.pop("extra") or "{}"), **row}'),
            ("finished=False, special_tokens=True", "finished=False, special_tokens=False"),
            ("if inspect.isawaitable(returned):", "if False:"),
            ("if step.filename == own", "if step.filename"),
            ("if isinstance(value, str | bytes):", "if False:"),
            ("str | bytes | Mapping | set | frozenset", "bytes"),
            ("not math.isfinite(score)", "math.isnan(score)"),
        ],
    ),
    (
        "tasks/data/functions.py",
        "tests/tasks/test_reward_functions.py",
        [("parameter.name in ON_REQUEST", "parameter.name == TOKEN_IDS")],
    ),
    (
        "tasks/models/checks.py",
        "tests/tasks/test_model_checks.py",
        [
            ("num_tokens > limit", "num_tokens > limit + 1"),
            ("response = checks.max_new_tokens + 1", "response = checks.max_new_tokens"),
            ("yield model.reward_model\n", "yield model.scalar_model\n"),
            ("model.vocabulary != policy.vocabulary", "len(model.vocabulary) != len(policy.vocabulary)"),
            ("if highest >= rows:", "if highest > 2 * rows:"),
            ("yield lambda: policy.language_model\n", "yield lambda: policy.config\n"),
            ("if self.tokenizer.eos_token_id is None:", "if self.tokenizer.bos_token_id is None:"),
        ],
    ),
    (
        "flows/orchestration/session.py",
        "tests/flows/test_when_models_are_checked.py",
        [
            ("        self._check_models()\n", ""),
            ("if self._data not in self._checked:", "if not self._checked:"),
            ('if call.stage == "prepare_data":', "if False:"),
        ],
    ),
    (
        "tasks/audit_rollouts.py",
        "tests/tasks/test_algorithms.py",
        [
            ('gain(now["score"], start["score"]) - metrics', 'gain(now["score"], start["score"]) + metrics'),
            ("start = now if baseline is None", "start = now if baseline is not None"),
            ('math.hypot(stderr, start[key]["lead_stderr"])', "stderr"),
            ("spread = None if baseline is None or", "spread = None if"),
            ('score=start["score"], other=start[key]', 'score=now["score"], other=now[key]'),
        ],
    ),
    (
        "tasks/metrics/policy_comparison.py",
        "tests/tasks/test_doubts.py tests/tasks/test_algorithms.py",
        [
            ('(now["mean"] - start["mean"]) / start["std"]', '(now["mean"] - start["mean"]) / now["std"]'),
            ("tuple(tokens[i : i + n])", "tuple(tokens[i : i + 1])"),
            ("len(set(grams)) / len(grams)", "len(set(grams)) / len(tokens)"),
            ("not response.strip()", "not response"),
            ('(a - score["mean"])', '(a + score["mean"])'),
        ],
    ),
    (
        "tasks/evaluate_policy.py",
        "tests/tasks/test_doubts.py",
        [
            ("reward in rewards.items() if reward.is_learned", "reward in rewards.items()"),
            ("rewards[name].weight * score for", "score for"),
            ('zip(*(column(reference, f"score_{name}")', 'zip(*(column(policy, f"score_{name}")'),
            ("follows = correlation(learned, theirs)", "follows = correlation(before, theirs)"),
            ("[now - then for now, then in leads]", "[now for now, then in leads]"),
        ],
    ),
    (
        "tasks/metrics/standard_errors.py",
        "tests/tasks/test_standard_errors.py",
        [
            ("len(sums) / (len(sums) - 1) * ", ""),
            ("/ len(xs)\n\n\ndef correlation", "/ len(sums)\n\n\ndef correlation"),
            ("len(set(groups))", "len(groups)"),
            ("(1 - correlation**2)", "1"),
        ],
    ),
    (
        "tasks/metrics/explained_variance.py",
        "tests/tasks/test_standard_errors.py",
        [
            ("error_squared - error.square() / count", "error_squared"),
            ("((len(number) - 1) * without", "(without"),
        ],
    ),
    (
        "tasks/metrics/combining.py",
        "tests/tasks/test_combining.py",
        [
            ("(weight * x) ** 2", "weight * x"),
            ('if how.way == "sum":', "if False:"),
            ('if how.way == "max":', "if False:"),
            ('if how.way == "last":', "if False:"),
            ("return values[-1]", "return values[0]"),
            ("math.nan if any(map(math.isnan, values)) else max(values)", "max(values)"),
            ("mean(x * x for x in values) + mean(", "mean("),
            ("+ mean((x - mean(means)) ** 2 for x in means)", ""),
            ("weights = [rows * metrics[how.beside] for rows, metrics in parts]", "pass"),
        ],
    ),
    (
        "tasks/metrics/history.py",
        "tests/tasks/test_history.py",
        [("sorted(parts.items())", "parts.items()")],
    ),
    (
        "tasks/metrics/declared/glossary.py",
        "tests/tasks/test_declared_metrics.py tests/tasks/test_combining.py",
        [
            ("key=lambda metric: -len(metric.name)", "key=lambda metric: len(metric.name)"),
            ("(bare != name and not metric.has_stderr)", "False"),
            ("if not name.endswith(STDERR) and (metric", "if (metric"),
            ('metric.combines.beside.replace("<reward>", found[1])', "metric.combines.beside"),
            ("    for name in names:\n        declaration(name)", "    del names"),
        ],
    ),
    (
        "tasks/metrics/warnings.py",
        "tests/tasks/test_diagnosis.py",
        [
            ("if not sign * (now.value - limit.value) <= margin:", "if sign * (now.value - limit.value) > margin:"),
            ("margin = self.z * math.hypot(now.stderr, limit.stderr)", "margin = self.z * now.stderr"),
            ("margin = self.z * math.hypot(now.stderr, limit.stderr)", "margin = 0.0"),
            ("== (1, 1)", "!= (0, 0)"),
        ],
    ),
    (
        "tasks/metrics/rules.py",
        "tests/tasks/test_diagnosis.py",
        [
            ("latest = seen.rows[-NEEDED:] or seen.led_here", "latest = seen.rows[-NEEDED:]"),
            ("(seen.rows or seen.led_here or (seen.now,))[-1]", "seen.now"),
            ("limit.of_reference * found.value + limit.number", "limit.of_reference * found.value"),
            ("b == (a[0], a[1] + 1)", "b[1] == a[1] + 1"),
            ("all(b < a for a, b in pairwise(rewards))", "rewards[-1] < rewards[0]"),
            ("reward += fallen", "pass"),
            ("    reward += (row.get", "    reward += 0 * (row.get"),
            ('iteration"] > FALLS', 'iteration"] >= FALLS'),
            ("own >= LEAST_CORRELATION * (own + seen.now[gap])", "True"),
            ("return not (own > 0 and", "return not ("),
            ("return not pairs or not all(", "return not pairs or not any("),
            ("seen.now is seen.first and is_alone", "is_alone"),
            ("z=Z_OF_A_TREND,", "z=0.0,"),
            ("if highest <= HIGH_APPROX_KL:", "if True:"),
        ],
    ),
    (
        "tasks/train_reward_model.py",
        "tests/tasks/test_preference_batches.py",
        [
            ("sum(a != b for a, b", "sum(True for a, b"),
            ("abs(with_it - batch_size) > abs(filled - batch_size)", "with_it > batch_size"),
            ('num_pairs = [pairs_in(row["ranks"]) for row in rows]', "num_pairs = [1 for row in rows]"),
        ],
    ),
    (
        "tasks/score_rollouts.py",
        "tests/tasks/test_older_rollouts.py tests/tasks/test_samplers.py",
        [
            ("unique().to_pylist() != [policy.digest]", "unique().to_pylist() == [policy.digest]"),
            ("    if is_behind:\n", "    if False:\n"),
            (
                'SAMPLING_LOGPROBS if SAMPLING_LOGPROBS in table.column_names else "logprobs"',
                '"logprobs"',
            ),
        ],
    ),
    (
        "tasks/score_rollouts.py",
        "tests/tasks/test_algorithms.py tests/tasks/test_stages.py",
        [
            ("models.policy(policy), reference_model", "reference_model, models.policy(policy)"),
            ('"final_value": final_values.tolist()', '"final_value": [0.0] * table.num_rows'),
        ],
    ),
    (
        "tasks/store/manifest.py",
        "tests/tasks/test_store.py tests/tasks/test_replay.py tests/flows/test_durability.py",
        [
            ("if name not in manifest.recoverable:", "if False:"),
            ('elif read and known_digest(Path(directory, name)) != entry["sha256"]:', "elif False:"),
        ],
    ),
    (
        "tasks/store/store.py",
        "tests/tasks/test_store.py tests/tasks/test_replay.py tests/flows/test_durability.py",
        [("if not keeps_recoverable:", "if False:")],
    ),
    (
        "tasks/contract/execution.py",
        "tests/flows/test_durability.py",
        [
            ("    for ref in flat(call.inputs):\n        require_undamaged(ref)\n    scratch", "    scratch"),
            ('if again.get(name) != entry["sha256"]:', "if False:"),
        ],
    ),
    (
        "tasks/contract/failures.py",
        "tests/tasks/test_worker.py",
        [
            (
                "if isinstance(error, UnhealthyError | NonFiniteError | DamagedError):",
                "if isinstance(error, UnhealthyError):",
            ),
            ("if number in PERMANENT_ERRNO:", "if False:"),
            ("isinstance(error, OSError | SafetensorError) and", "isinstance(error, Exception) and"),
        ],
    ),
    (
        "tasks/models/scalar.py",
        "tests/tasks/test_models.py tests/tasks/test_adapters.py",
        [
            ("                parameter.zero_()", "                pass"),
            ("    nn.init.zeros_(head.weight)", "    pass"),
            ("if seed is not None:\n                weight", "if False:\n                weight"),
            (
                "raw = linear_in_float32(getattr(self.model, HEAD), hidden)",
                "raw = getattr(self.model, HEAD)(hidden).float()",
            ),
        ],
    ),
    (
        "tasks/models/devices.py",
        "tests/tasks/test_models.py tests/tasks/test_adapters.py",
        [("x.to(torch.promote_types(dtype, head_dtype))", "x.to(dtype)")],
    ),
    (
        "tasks/critic_pretraining.py",
        "tests/tasks/test_critic_pretraining.py",
        [
            ("if reward_model is not None:", "if False:"),
            ("for rows in (~is_held_out, is_held_out))", "for rows in (is_held_out | ~is_held_out, is_held_out))"),
            ("return torch.tensor([i == len(prompt_ids) - 1 for", "return torch.tensor([True for"),
            ("% every == every - 1 for", "% every == 0 for"),
            (
                "trainable.model.head_alone() if isinstance(trainable.model, TrunkCritic) else trainable.model",
                "trainable.model",
            ),
            ("num_tokens=len(chosen.responses.values)", "num_tokens=1"),
            (
                '{"_before": held_out.token_columns["values"], "": after}',
                '{"": held_out.token_columns["values"], "_before": after}',
            ),
            (
                "policy=reference,\n        reference=reference,\n        critic=critic",
                "policy=reference,\n        reference=reference,\n        critic=reference",
            ),
            ('seed=context.seed("critic_pretraining"), epoch', "seed=0, epoch"),
        ],
    ),
    (
        "tasks/compute_advantages.py",
        "tests/tasks/test_algorithms.py",
        [
            ("critic_lam=config.critic_lam,", "critic_lam=config.lam,"),
            ("length_adaptive_lam(mask, alpha=config.lam_alpha)", "config.lam"),
            ('if config.algorithm == "reinforce" else 0.0', 'if config.algorithm != "reinforce" else 0.0'),
            ("to_go - baseline", "to_go + baseline"),
            ("rewards_to_go(rewards, mask, gamma=config.gamma)", "rewards_to_go(rewards, mask, gamma=1.0)"),
        ],
    ),
    (
        "flows/config/run_config.py",
        "tests/flows/test_config.py",
        [
            ("if self.ppo.num_minibatches > num_rows:", "if self.ppo.num_minibatches > num_rows + 1:"),
            ('"ppo": {**ONE_STEP, **given}}', '"ppo": {**given}}'),
            ('if self.ppo.loss == "pg":', "if False:"),
            ("if not advantages.reward_to_go:", "if advantages.reward_to_go:"),
            ("if self.algorithm not in WITH_REWARDS_TO_GO:", "if self.has_critic:"),
            ("if not self.has_critic and pretraining not in (None, CriticPretrainingConfig()):", "if False:"),
        ],
    ),
    (
        "flows/config/as_written.py",
        "tests/flows/test_config.py",
        [
            ("if not isinstance(written, bool):", "if False:"),
            ("    if isinstance(written, bool):\n        raise", "    if False:\n        raise"),
            ("if isinstance(written, str) and INFINITE.get(written) != taken:", "if False:"),
            ("if isinstance(written, str) and INFINITE.get(written) != taken:", "if isinstance(written, str):"),
            ("if isinstance(taken, int) and isinstance(written, float):", "if False:"),
            ("if isinstance(taken, int) and abs(taken) > LARGEST_INT:", "if False:"),
            ("if math.isinf(taken) and not any(part in path for part in MAY_BE_INFINITE):", "if False:"),
            ("    elif isinstance(written, list | tuple) and isinstance(taken, list | tuple):", "    elif False:"),
        ],
    ),
    (
        "flows/config/bounds.py",
        "tests/flows/test_config.py",
        [
            ("config.rounds * config.iterations * rollouts.shards", "config.rounds * config.iterations"),
            ("config.rounds * config.iterations * rollouts.shards", "config.iterations * rollouts.shards"),
            ("        * rollouts.samples_per_prompt,", ","),
            ("if config.reward_model is not None:", "if False:"),
            ("if count > MAX_RESPONSES:", "if False:"),
        ],
    ),
    (
        "tasks/data/code_files.py",
        "tests/tasks/test_code_files.py",
        [
            ("for needed in [*_parents(name), *_imports(", "for needed in [*_imports("),
            ("- node.level + 1]", "- node.level]"),
            ("if not path.is_file() or set(LIBRARIES) & set(path.parts):", "if not path.is_file():"),
            ("for place in (*python, *ours)", "for place in python"),
            ("if called in IMPORTERS and", "if False and"),
        ],
    ),
    (
        "tasks/paths.py",
        "tests/tasks/test_unfit_sources.py",
        [
            ("    if not stat.S_ISREG(mode):", "    if False:"),
            ("    except RuntimeError:\n", "    except KeyError:\n"),
            ("        os.fsencode(text)\n", ""),
            (", errno.ENAMETOOLONG):", "):"),
            ("return text if len(text) <= width else", "return text if True else"),
        ],
    ),
    (
        "tasks/data/readers.py",
        "tests/tasks/test_unfit_sources.py",
        [
            ("        if len(line) > MAX_ROW:", "        if False:"),
            ("                        if len(rest) > MAX_ROW:", "                        if False:"),
            ("zlib.error, ValueError, OverflowError, LookupError)", "zlib.error)"),
            ("or Path(name).name != name]", "]"),
            (
                "    return [require_regular(where / name) for name in names]",
                "    return [where / name for name in names]",
            ),
        ],
    ),
    (
        "tasks/text/limited.py",
        "tests/tasks/test_limited.py",
        [
            ("class _OverTimeError(BaseException):", "class _OverTimeError(Exception):"),
            (
                "                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)",
                "                pass",
            ),
            ("            resource.setrlimit(resource.RLIMIT_AS, self._now)", "            pass"),
            ("resource.setrlimit(resource.RLIMIT_AS, self._before)", "pass"),
            ("if self._calls == 0:", "if True:"),
            ("    return lambda: time.clock_gettime(clock)", "    return time.monotonic"),
        ],
    ),
    (
        "tasks/config/rewards.py",
        "tests/tasks/test_reward_names.py",
        [
            ("        if name.endswith(STDERR):", "        if False:"),
            ("        owners |= dict.fromkeys(own, name)\n", ""),
            ("if REWARD in name]", 'if REWARD in name and not name.endswith("_correlation")]'),
            ("if not metric.is_pattern]", 'if not metric.is_pattern and "length" not in name]'),
        ],
    ),
    (
        "tasks/worker/dealer.py",
        "tests/tasks/test_pool.py",
        [
            ("(request.iteration, cost, position", "((0, 0), cost, position"),
            (" and not self._has_caught_up(request)", ""),
            ("self._workers > 1 and request.is_ahead", "self._workers > 1 and False"),
            ("self._workers > 1 and request.is_ahead", "request.is_ahead"),
            ("(round, iteration - 1)", "(round, iteration)"),
        ],
    ),
    (
        "tasks/worker/pool.py",
        "tests/tasks/test_pool.py",
        [
            ("call.place.iteration == 1:", "False:"),
            ("if call.stage != GENERATION or", "if"),
        ],
    ),
    (
        "flows/config/lag.py",
        "tests/flows/test_config.py",
        [
            ("if lag >= config.iterations:", "if lag > config.iterations:"),
            ("config.keep_checkpoints <= lag", "config.keep_checkpoints < lag"),
            ("if config.checkpoint_every > 1:", "if False:"),
        ],
    ),
    (
        "flows/round.py",
        "tests/flows/test_wiring.py",
        [
            ("min(iteration + config.rollouts.lag, config.iterations)", "iteration"),
            ("min(iteration + config.rollouts.lag, config.iterations)", "config.iterations"),
            ("rollouts=rollouts[iteration - 1],", "rollouts=rollouts[-1],"),
            ("if config.critic_pretraining is not None:", "if True:"),
            ('    "critic_lam": 1.0,\n', ""),
            ('    "kl_coef": 0.0,\n', ""),
            ('if own["learning_rate"] is None:', "if True:"),
        ],
    ),
    (
        "tasks/models/adapters.py",
        "tests/tasks/test_adapters.py",
        [
            ("weights[own] = torch.zeros(parameter.shape)", "weights[own] = torch.ones(parameter.shape)"),
            ("layer.enable_adapters(name is not None)", "layer.enable_adapters(True)"),
            ("POLICY if access.shared_trunk else part", "part"),
        ],
    ),
    (
        "tasks/models/access.py",
        "tests/tasks/test_in_parts.py",
        [
            ("self.context.execution.shares, self.is_in_parts)", "self.context.execution.shares)"),
            ("self.context.rank > 0 and (empty", "self.context.rank >= 0 and (empty"),
            ("self.context.rank > 0 and (empty", "False and (empty"),
            ("left_whole=shared.trained)", "left_whole=())"),
        ],
    ),
    (
        "tasks/models/loading.py",
        "tests/tasks/test_in_parts.py",
        [
            ("if own is not None and own not in tensors:", "if own is not None:"),
            ("if any(isinstance(kept, Tensor) for kept in vars(module).values()):", "if False:"),
        ],
    ),
    (
        "tasks/worker/ranks.py",
        "tests/tasks/test_train_together.py::test_of_several_processes_that_failed_the_cause_is_told "
        "tests/tasks/test_train_together.py::test_a_process_that_is_killed_ends_the_others_and_is_worth_another_attempt",
        [
            ("if killed and not of_users:", "if killed:"),
            ("if killed and not of_users:", "if False:"),
            ("first = min(told", "first = max(told"),
            ("        if ran_out:\n", "        if not ran_out:\n"),
            ("if code != 0)\n        return", "if code == 0)\n        return"),
        ],
    ),
    (
        "tasks/models/checkpoint.py",
        "tests/tasks/test_adapters.py tests/tasks/test_stages.py tests/flows/test_memory.py tests/flows/test_durability.py",
        [
            ("if not kept and not path.exists():", "if True:"),
            ("optimizer.state.clear()", "pass"),
            ("if not self._context.keeps_recoverable:", "if False:"),
        ],
    ),
    (
        "tasks/store/background.py",
        "tests/tasks/test_background.py",
        [
            ("            for future in self._futures:\n                future.result()", "            pass"),
            ("            known_digest(file)\n", ""),
            ("self._pool.submit(self._write, path, write)", "self._pool.submit(write, path)"),
            ("if self._flushes else None", "if False else None"),
            ("if self._flushes else None", ""),
            ("                flushed.result()", "                pass"),
            ("        self._flushing.shutdown()\n", ""),
        ],
    ),
]

FLOWS: Table = [
    (
        "flows/query/grammar.py",
        "tests/flows/test_query.py",
        [
            ('is_negated = bool(term["minus"])', "is_negated = False"),
            ('largest_first=bool(term["descending"])', 'largest_first=not term["descending"]'),
            ('column = term["column"] or term["named"]', 'column = term["column"]'),
            ("if len(text) > LONGEST:", "if len(text) > LONGEST + 1:"),
            ('.replace("\\\\/", "/")', ""),
        ],
    ),
    (
        "flows/query/conditions.py",
        "tests/flows/test_query.py",
        [
            ("return pc.fill_null(mask, scalar(False))", "return pc.fill_null(mask, scalar(True))"),
            ("return pc.invert(mask) if condition.is_negated else mask", "return mask"),
            ('"<=": pc.less_equal', '"<=": pc.less'),
            ('">": pc.greater,', '">": pc.greater_equal,'),
            (
                "match_substring_regex(texts, condition.text, ignore_case=True)",
                "match_substring_regex(texts, condition.text)",
            ),
            (
                "pc.match_substring(texts, condition.text, ignore_case=True)",
                "pc.match_substring(texts, condition.text)",
            ),
            ("if name in TEXTS:\n        return", "if True:\n        return"),
            ("values.type if pa.types.is_floating(values.type) else pa.float64()", "pa.float64()"),
        ],
    ),
    (
        "flows/query/data_set.py",
        "tests/flows/test_query.py tests/flows/test_views.py",
        [
            ("ranked = ranked if top is None else ranked[:top]", "pass"),
            ('"descending" if own.largest_first else "ascending"', '"ascending"'),
            ("np.argsort(np.concatenate(self.order))", "np.arange(len(np.concatenate(self.order)))"),
            ("mask = own if mask is None else pc.and_(mask, own)", "mask = own"),
        ],
    ),
    (
        "flows/query/part.py",
        "tests/flows/test_query.py",
        [("return self._audit.column(name).take(rows)", "return self._audit.column(name)")],
    ),
    (
        "flows/query/find.py",
        "tests/flows/test_query.py tests/flows/test_views.py",
        [
            ("(self.last is None or number <= self.last)", "True"),
            ("stage = next(stage for stage in stages if", "stage = next(stage for stage in reversed(stages) if"),
        ],
    ),
    (
        "flows/query/columns.py",
        "tests/flows/test_query.py",
        [
            ("return totals[offsets[1:] - offsets[0]]", "return totals[offsets[1:]]"),
            ("and not isinstance(value, bool)", ""),
        ],
    ),
    (
        "flows/server/guard.py",
        "tests/flows/test_server_guard.py",
        [
            ("if len(hosts) != 1 or hosts[0] not in self._hosts:", "if hosts and hosts[0] not in self._hosts:"),
            ("if len(hosts) != 1 or hosts[0] not in self._hosts:", "if len(hosts) != 1:"),
            (
                "if len(hosts) != 1 or hosts[0] not in self._hosts:",
                "if hosts[-1:] == [] or hosts[0] not in self._hosts:",
            ),
            ('if any(origin != f"http://{hosts[0]}"', 'if any(not origin.startswith("http://127.0.0.1")'),
            ('if any(origin != f"http://{hosts[0]}"', 'if any(origin == "null"'),
            ('(site not in ("same-origin", "none")', '(site == "cross-site"'),
            ('scope.get("method") == "GET" and headers.get', "headers.get"),
            ('headers.get(b"sec-fetch-mode") == ["navigate"]', "True"),
            ('types != ["application/json"]', 'types == ["text/plain"]'),
            ("(types or has_body) and", "types and"),
            (' or b"transfer-encoding" in headers', ""),
            ('("POST", "PUT", "PATCH", "DELETE")', '("POST",)'),
            ('if scope["type"] not in ("http", "websocket"):', 'if scope["type"] != "http":'),
            ("receive, unframed(send))", "receive, send)"),
        ],
    ),
    (
        "flows/schedules/limits.py",
        "tests/flows/test_schedules.py",
        [
            ("not value or trusts", "True"),
            ("is_allowed, rule = text in own.get(field, set()), ", "is_allowed, rule = True, "),
            ("is_inside = not trusts and lies_inside", "is_inside = lies_inside"),
            ("text in own_models or text in NO_MODEL or is_inside", "True"),
            ('".." not in path.parts and all(', "all("),
            ("place.exists() and place.resolve()", "place.resolve()"),
            ("place.resolve().is_relative_to", "place.is_relative_to"),
            ("[Path(*path.parts[:wild]), *found]", "[Path(*path.parts[:wild])]"),
        ],
    ),
    (
        "flows/server/embedded.py",
        "tests/flows/test_servers.py",
        [
            ('if state["directory"] != place_of(directory):', "if False:"),
            ('if state["host"] != socket.gethostname():', "if False:"),
            ('if state == {**state, **identity(state["pid"])}:', "if True:"),
            ("proof_of(auth_string(home), nonce, url))", 'proof_of(auth_string(home), nonce, "x"))'),
        ],
    ),
    (
        "flows/server/process.py",
        "tests/flows/test_servers.py",
        [
            ("if path.stat().st_mode & 0o077 == 0 and (", "if ("),
            ("os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)", "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)"),
            ("directory.chmod(0o700)", "pass"),
        ],
    ),
    (
        "flows/state.py",
        "tests/flows/test_until.py",
        [("return self._left == 0", "return self._left == 1"), ("self._left -= 1", "self._left -= 0")],
    ),
    (
        "flows/plan/glance.py",
        "tests/flows/test_glance.py",
        [
            ("entry[:3] != wanted or not", "entry[:2] != wanted[:2] or not"),
            ("entry[:3] != wanted or not self._is_there(entry)", "entry[:3] != wanted"),
            ("!= entry.manifest", "[0] != entry.manifest[0]"),
            ("st_size != size", "st_size < 0"),
            ("if not may_be_absent:", "if may_be_absent:"),
            ("[versions, config.seed,", "[config.seed,"),
            ("[versions, config.seed,", "[versions,"),
            ("dump(config.execution), run.generations,", "run.generations,"),
            ("dump(config.execution), run.generations,", "dump(config.execution),"),
            ("asdict(externals), code]", "asdict(externals)]"),
            ('if document["key"] == key else []', ""),
            ("if self._num_followed < WORTH:", "if self._num_followed > WORTH:"),
        ],
    ),
    (
        "flows/plan/planned.py",
        "tests/flows/test_until.py",
        [
            ("self.stages.index(first[-1]) + 1]", "self.stages.index(first[0]) + 1]"),
            ("is_whole=False)", "is_whole=True)"),
        ],
    ),
    (
        "flows/alone/evaluate.py",
        "tests/flows/test_alone.py",
        [
            ("[now - then for now, then in", "[now for now, then in"),
            ("else spread / std", "else spread"),
            ("        AN_ADAPTER: base,\n", ""),
            ("if own != theirs:", "if False:"),
        ],
    ),
    (
        "flows/alone/sample.py",
        "tests/flows/test_alone.py",
        [
            ('given.seed("sample", prompt_id, index)', 'given.seed("sample", index)'),
            ("for _ in range(asked.samples)]", "for _ in range(1)]"),
            ("length + new_tokens > limit", "new_tokens > limit + 500"),
        ],
    ),
    (
        "flows/alone/score.py",
        "tests/flows/test_alone.py",
        [
            ("if not rewards.keys() <= found.keys():", "if False:"),
            ("reward_model=reward_model,", "reward_model=None,"),
        ],
    ),
    (
        "tasks/store/given_rows.py",
        "tests/flows/test_starting.py",
        [
            ("preserve_index=False)", "preserve_index=True)"),
            ("table.replace_schema_metadata(None)", "table"),
        ],
    ),
    (
        "tasks/tracking/database.py",
        "tests/tasks/test_tracking.py",
        [
            ('if "?" in path else', "if False else"),
            ("place.endswith(ARTIFACTS) and place != here", "place != here"),
            (
                'PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ',
                'PLACES = (("runs", "artifact_uri"), ',
            ),
            (
                'PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ',
                'PLACES = (("experiments", "artifact_location"), ',
            ),
        ],
    ),
]


@dataclass(frozen=True)
class Mutant:
    path: str
    tests: tuple[str, ...]
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}: {_one_line(self.old)}  ->  {_one_line(self.new)}"


def main(arguments: Sequence[str]) -> int:
    wanted = arguments[0] if arguments else ""
    mutants = [
        Mutant(path, tuple(tests.split()), old, new)
        for path, tests, changes in [*PPO_CORE, *DATA, *TASKS, *FLOWS]
        for old, new in changes
    ]
    mutants = [mutant for mutant in mutants if wanted in f"{mutant} {mutant.old} {mutant.new}"]
    if not mutants:
        print(f"No mutant has {wanted!r} in its path, its old or its new text; without one, all are tried")
        return 2
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(os.cpu_count()) as workers:
        original = Path(folder) / "original"
        copy_tree(ROOT, original)
        require_own_packages(original)
        all_tests = sorted({test for mutant in mutants for test in mutant.tests})
        if (verdict := run_tests(original, all_tests)) != "SURVIVED":
            print(f"Without any change the tests do not pass: {verdict}")
            return 1
        verdicts = []
        for mutant, verdict in zip(
            mutants, workers.map(lambda mutant: try_out(mutant, original), mutants), strict=True
        ):
            print(f"{mutant}\n    {verdict}", flush=True)
            verdicts.append(verdict)
    killed = sum(verdict.startswith("killed") for verdict in verdicts)
    survivors = [mutant for mutant, verdict in zip(mutants, verdicts, strict=True) if not verdict.startswith("killed")]
    print(f"\n{len(mutants)} mutants: {killed} killed, {len(survivors)} not, in {time.monotonic() - start:.0f} s")
    for mutant in survivors:
        print(f"not killed: {mutant}")
    return 1 if survivors else 0


def try_out(mutant: Mutant, original: Path) -> str:
    """What the tests say of a copy with this one change."""
    source = (original / mutant.path).read_text()
    if (count := source.count(mutant.old)) != 1:
        return f"NOT RUN: the old text occurs {count} times"
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_tree(original, Path(folder))
        (Path(folder) / mutant.path).write_text(source.replace(mutant.old, mutant.new))
        return run_tests(Path(folder), mutant.tests)


def copy_tree(source: Path, target: Path) -> None:
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(source / part, target / part)


def run_tests(tree: Path, tests: Sequence[str]) -> str:
    """``killed by`` the first test that fails, ``SURVIVED`` where none does."""
    options = ["-x", "-q", "-rfE", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    try:
        run = python(tree, "-m", "pytest", "-n", "0", *options, *tests)
    except subprocess.TimeoutExpired:
        return f"killed by the time limit of {TIME_LIMIT_S} s"
    if run.returncode == 0:
        return "SURVIVED"
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    # 1 says that a test failed; anything else that they did not run: a change that cannot be imported, a wrong name.
    if run.returncode != 1 or failed is None:
        return f"NOT RUN: pytest ended with {run.returncode}: {' '.join((run.stdout + run.stderr).split()[-40:])}"
    return f"killed by {failed[1]}"


def require_own_packages(tree: Path) -> None:
    """The packages of the copy are what its tests import, not those of an installed checkout."""
    run = python(tree, "-c", "import flows, ppo_core, tasks; print(flows.__path__, ppo_core.__path__, tasks.__path__)")
    assert run.stdout.count(f"['{tree}") == 3, run.stdout + run.stderr


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without bytecode: a file changed within a second and to the same length would be taken for the one compiled before.
    environment = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
