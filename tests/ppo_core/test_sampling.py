import math

import pytest
import reference
import torch
from cases import Draws, law, seeds
from hypothesis import given
from hypothesis import strategies as st
from small_models import HistoryPolicy, history_policy, tiny, tiny_gpt2, tiny_llama
from torch import tensor

from ppo_core import (
    InPrecision,
    Ragged,
    SamplingConfig,
    ShapeError,
    derive_seed,
    response_logprobs,
    sample,
)
from ppo_core.decoding import way_of
from ppo_core.sampling import _first_beyond, draw_tokens, keep_likely

INT = torch.int64
PROMPTS = [[1], [2, 3, 4], [5, 6], [7, 1, 2, 3, 4, 5], [2], [3, 3, 3], [4, 1], [6]]


def prompts(rows=PROMPTS):
    return Ragged.from_rows(rows, INT)


def row_seeds(n=len(PROMPTS)):
    return [derive_seed("row", i) for i in range(n)]


def responses(batch):
    return [batch.responses.row(i).tolist() for i in range(len(batch))]


def chi_square(counts, probabilities):
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, probabilities, strict=True) if p > 0)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (1.5, 4, 0.8)]
)
def test_tokens_are_drawn_from_the_tempered_and_filtered_distribution(temperature, top_k, top_p):
    z = Draws(3).normal(8).tolist()
    policy = HistoryPolicy(tensor([z] * 97, dtype=torch.float64))
    config = SamplingConfig(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    n = 4000
    batch = sample(policy, prompts([[1]] * n), sampling=config, seeds=row_seeds(n))
    tempered = reference.softmax([x / temperature for x in z])
    kept = reference.likely_tokens(tempered, top_k, top_p)
    mass = sum(tempered[v] for v in kept)
    counts = torch.bincount(batch.responses.values, minlength=8).tolist()
    assert {v for v, count in enumerate(counts) if count} == kept
    # 7 degrees of freedom at most: a right sampler stays below 24.3 with probability 99.9 %; the seeds are fixed.
    assert chi_square(counts, [tempered[v] / mass if v in kept else 0 for v in range(8)]) < 24.3


def test_successive_tokens_are_drawn_independently():
    z = [0.5, 0.0, -0.5, 0.2]
    policy = HistoryPolicy(tensor([z] * 97, dtype=torch.float64))
    config = SamplingConfig(max_new_tokens=2)
    n = 4000
    batch = sample(policy, prompts([[1]] * n), sampling=config, seeds=row_seeds(n))
    first, second = batch.responses.values.view(n, 2).T
    p = reference.softmax(z)
    counts = torch.bincount(first * 4 + second, minlength=16).tolist()
    # 15 degrees of freedom, 99.9 %
    assert chi_square(counts, [a * b for a in p for b in p]) < 37.7


@law
@given(seeds, st.integers(0, 8), st.floats(0.05, 1))
def test_the_support_is_what_top_k_then_top_p_leave(seed, top_k, top_p):
    logits = 2 * Draws(seed).normal(3, 6)
    config = SamplingConfig(max_new_tokens=1, top_k=top_k, top_p=top_p)
    probabilities = logits.softmax(dim=1)
    kept = keep_likely(probabilities, sampling=config)
    for p, row in zip(probabilities, kept, strict=True):
        expected = reference.likely_tokens(p.tolist(), top_k, top_p)
        assert set(row.nonzero()[:, 0].tolist()) == expected
        assert all(row[v] == p[v] for v in expected)


def test_the_support_worked_example():
    p = tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)

    def kept(**settings):
        row = keep_likely(p, sampling=SamplingConfig(max_new_tokens=1, **settings))[0]
        return row.nonzero()[:, 0].tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.4) == [1]
    assert kept(top_p=0.01) == [1]
    assert kept(top_p=0.5) == [1, 3]
    # 0.4 + 0.3 is less than 0.75, but of the 0.9 that top-k leaves it is 0.78.
    assert kept(top_p=0.75) == [1, 2, 3]
    assert kept(top_p=0.75, top_k=3) == [1, 3]


def test_a_uniform_number_falls_into_the_interval_of_its_token():
    logits = tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    config = SamplingConfig(max_new_tokens=1)
    for u, token in ((0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (1 - 2**-53, 2)):
        drawn, logprob = draw_tokens(logits, tensor([u], dtype=torch.float64), sampling=config)
        assert drawn.tolist() == [token]
        assert logprob.item() == pytest.approx(logits.log_softmax(dim=1)[0, token].item(), abs=1e-12)


def test_a_token_of_probability_zero_is_never_drawn():
    logits = tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    config = SamplingConfig(max_new_tokens=1)
    for u, token in ((0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3), (1.0, 3)):
        drawn, logprob = draw_tokens(logits, tensor([u], dtype=torch.float64), sampling=config)
        assert drawn.tolist() == [token]
        assert logprob.item() == pytest.approx(logits.log_softmax(dim=1)[0, token].item(), abs=1e-12)


@law
@given(seeds, st.integers(1, 1300), st.floats(0, 1), st.sampled_from([torch.float32, torch.float64]))
def test_a_token_is_found_in_a_vocabulary_of_any_size(seed, vocabulary, uniform, dtype):
    draws = Draws(seed)
    weights = draws.normal(vocabulary).clamp(min=0)
    weights[int(draws.integers(vocabulary, 1))] = 1.0
    logits = weights.to(dtype).log()[None]
    config = SamplingConfig(max_new_tokens=1)
    drawn, logprob = draw_tokens(logits, tensor([uniform], dtype=torch.float64), sampling=config)
    token = int(drawn)
    total = weights.sum().item()
    assert weights[token] > 0
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert weights[:token].sum().item() <= uniform * total + tolerance * total
    assert weights[: token + 1].sum().item() >= uniform * total - tolerance * total
    assert logprob.item() == pytest.approx(math.log(weights[token] / total), abs=tolerance * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_never_leads_beyond_the_last_token_that_can_occur(dtype):
    # Sums of a block and of its tokens one by one differ by rounding, and a number just below 1 leaves nothing else. The
    # last block is not a full one.
    weights = (10 * Draws(0).normal(2000, 600)).exp().to(torch.float32)
    weights[:, 590:595] = 0
    below_one = torch.full((2000,), 1 - torch.finfo(dtype).eps / 2, dtype=dtype)
    drawn = _first_beyond(weights, below_one)
    assert (drawn < 600).all()
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_a_number_of_zero_finds_the_first_token_that_can_occur_however_far():
    logits = torch.full((1, 1300), -torch.inf)
    logits[0, 700] = 0.0
    drawn, _ = draw_tokens(logits, torch.zeros(1, dtype=torch.float64), sampling=SamplingConfig(max_new_tokens=1))
    assert drawn.tolist() == [700]


def test_suppressed_tokens_are_never_drawn_and_change_no_stored_logprob():
    z = Draws(3).normal(8).tolist()
    policy = HistoryPolicy(tensor([z] * 97, dtype=torch.float64))
    config = SamplingConfig(max_new_tokens=1, suppress_token_ids=(1, 6), top_k=5)
    n = 4000
    batch = sample(policy, prompts([[1]] * n), sampling=config, seeds=row_seeds(n))
    p = reference.softmax(z)
    # Among those that are left, top-k keeps what it would keep of a vocabulary without them.
    kept = set(reference.likely_tokens([0 if v in (1, 6) else x for v, x in enumerate(p)], 5, 1.0))
    mass = sum(p[v] for v in kept)
    drawn = batch.responses.values
    counts = torch.bincount(drawn, minlength=8).tolist()
    assert {v for v, count in enumerate(counts) if count} == kept
    assert len(kept) == 5
    # 4 degrees of freedom, 99.9 %
    assert chi_square(counts, [p[v] / mass if v in kept else 0 for v in range(8)]) < 18.5
    torch.testing.assert_close(batch.token_columns["logprobs"], tensor(p)[drawn].log().float())


@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny("mamba")])
def test_a_model_may_sample_in_a_precision_of_its_own(make):
    model = make()
    config = SamplingConfig(max_new_tokens=8, stop_token_ids=(0,))
    plain, single, half = (
        sample(wrapped, prompts(), sampling=config, seeds=row_seeds())
        for wrapped in (model, InPrecision(model, torch.float32), InPrecision(model, torch.bfloat16))
    )
    assert responses(single) == responses(plain)
    assert not torch.is_autocast_enabled("cpu")
    # What was drawn in bfloat16 has the probabilities that a forward pass in bfloat16 gives it.
    with torch.no_grad():
        forced = response_logprobs(InPrecision(model, torch.bfloat16), half.padded(), temperature=1.0)
    padded = half.padded()
    torch.testing.assert_close(padded.token_columns["logprobs"], forced.float(), atol=0.1, rtol=0.05)
    assert not torch.equal(half.token_columns["logprobs"], plain.token_columns["logprobs"])


@pytest.mark.parametrize("make", [lambda: history_policy(0), tiny_llama])
def test_samples_that_share_a_prompt_are_those_of_prompts_by_themselves(make):
    config = SamplingConfig(max_new_tokens=12, stop_token_ids=(0,))
    model = make()
    shared = sample(model, prompts(), sampling=config, seeds=row_seeds(24), samples_per_prompt=3)
    repeated = [row for row in PROMPTS for _ in range(3)]
    alone = sample(model, prompts(repeated), sampling=config, seeds=row_seeds(24))
    assert responses(shared) == responses(alone)
    assert shared.stopped.tolist() == alone.stopped.tolist()


@pytest.mark.parametrize("make", [lambda: history_policy(0), tiny_llama, tiny_gpt2])
def test_a_row_does_not_depend_on_its_batch(make):
    model = make()
    config = SamplingConfig(max_new_tokens=20, temperature=1.2, top_p=0.9, top_k=6, stop_token_ids=(0, 5))
    together = sample(model, prompts(), sampling=config, seeds=row_seeds())
    assert 0 < together.stopped.sum() <= len(PROMPTS)
    assert together.responses.lengths.max() > together.responses.lengths.min()
    order = [5, 3, 0, 6, 1, 7, 2, 4]
    shuffled = sample(model, prompts().select(tensor(order)), sampling=config, seeds=[row_seeds()[i] for i in order])
    assert responses(shuffled) == [responses(together)[i] for i in order]
    for i, seed in enumerate(row_seeds()):
        alone = sample(model, prompts([PROMPTS[i]]), sampling=config, seeds=[seed])
        assert responses(alone) == [responses(together)[i]]
        assert alone.stopped.tolist() == [together.stopped[i].item()]
        torch.testing.assert_close(
            alone.token_columns["logprobs"], together.column("logprobs").row(i), atol=1e-4, rtol=1e-4
        )


def test_a_longer_limit_continues_the_same_rows_and_other_seeds_give_others():
    policy = history_policy(0)
    short = sample(policy, prompts(), sampling=SamplingConfig(max_new_tokens=4), seeds=row_seeds())
    long = sample(policy, prompts(), sampling=SamplingConfig(max_new_tokens=9), seeds=row_seeds())
    assert [row[:4] for row in responses(long)] == responses(short)
    other = sample(policy, prompts(), sampling=SamplingConfig(max_new_tokens=4), seeds=[9 + s for s in row_seeds()])
    assert responses(other) != responses(short)


@pytest.mark.parametrize("make", [lambda: history_policy(0), tiny_llama, tiny_gpt2])
def test_stored_logprobs_are_those_of_the_full_tempered_distribution(make):
    model = make()
    config = SamplingConfig(max_new_tokens=12, temperature=0.8, top_k=3, top_p=0.8, stop_token_ids=(0,))
    batch = sample(model, prompts(), sampling=config, seeds=row_seeds())
    with torch.no_grad():
        padded = batch.padded()
        forced = response_logprobs(model, padded, temperature=0.8)
    assert batch.token_columns["logprobs"].dtype == torch.float32
    torch.testing.assert_close(padded.token_columns["logprobs"], forced.float(), atol=1e-4, rtol=1e-4)


def test_a_response_ends_with_its_first_stop_token_or_is_cut_off():
    config = SamplingConfig(max_new_tokens=6, stop_token_ids=(0, 5))
    n = 64
    batch = sample(history_policy(0), prompts([[1]] * n), sampling=config, seeds=row_seeds(n))
    lengths = set()
    for response, stopped in zip(responses(batch), batch.stopped.tolist(), strict=True):
        assert not {0, 5} & set(response[:-1])
        assert stopped == (response[-1] in (0, 5))
        assert stopped or len(response) == 6
        lengths.add((len(response), stopped))
    # The border cases were met: stopped by the very first and by the very last token, and cut off.
    assert {(1, True), (6, True), (6, False)} <= lengths


def test_should_stop_sees_the_response_so_far_and_ends_it():
    seen = []

    def should_stop(response):
        seen.append(list(response))
        return response[-2:] == [3, 3] or len(response) == 7

    batch = sample(
        history_policy(2, spread=0.1),
        prompts([[1]] * 40),
        sampling=SamplingConfig(max_new_tokens=9, stop_token_ids=(0,)),
        seeds=row_seeds(40),
        should_stop=should_stop,
    )
    ends = set()
    for response, stopped in zip(responses(batch), batch.stopped.tolist(), strict=True):
        assert stopped
        assert len(response) <= 7
        assert all(response[t : t + 2] != [3, 3] for t in range(len(response) - 2))
        assert 0 not in response[:-1]
        for t in range(len(response)):
            assert response[: t + 1] in seen
        ends.add("string" if response[-2:] == [3, 3] else "token" if response[-1] == 0 else len(response))
    assert ends == {"string", "token", 7}
    assert len(seen) == len(batch.responses.values)


def test_finished_rows_leave_the_batch():
    policy = history_policy(0)
    config = SamplingConfig(max_new_tokens=40, stop_token_ids=(0,))
    n = 64
    steps = []
    way_of(policy)
    policy.batch_sizes.clear()
    batch = sample(policy, prompts([[1]] * n), sampling=config, seeds=row_seeds(n), on_tokens=steps.append)
    assert sum(steps) == len(batch.responses.values)
    assert steps[0] == n
    assert len(steps) == batch.responses.lengths.max()
    # One call reads the prompts, and nothing is asked after the last token.
    assert len(policy.batch_sizes) == len(steps)
    # A few stay until enough of them have finished.
    assert any(live < size for size, live in zip(policy.batch_sizes, steps, strict=True))
    for size, live in zip(policy.batch_sizes, steps, strict=True):
        assert live <= size < max(2, live / 0.75 + 1)
    assert policy.batch_sizes[-1] < n / 4


def test_generation_ends_with_the_last_live_row():
    always_stops = HistoryPolicy(tensor([[0.0, -math.inf]] * 97, dtype=torch.float64))
    config = SamplingConfig(max_new_tokens=50, stop_token_ids=(0,))
    way_of(always_stops)
    always_stops.batch_sizes.clear()
    batch = sample(always_stops, prompts(), sampling=config, seeds=row_seeds())
    assert responses(batch) == [[0]] * len(PROMPTS)
    assert batch.stopped.all()
    assert len(always_stops.batch_sizes) == 1


def test_no_prompts_give_no_responses():
    batch = sample(history_policy(0), prompts([]), sampling=SamplingConfig(max_new_tokens=3), seeds=[])
    assert len(batch) == 0


def test_prompts_that_cannot_be_answered_are_refused():
    config = SamplingConfig(max_new_tokens=3)
    with pytest.raises(ShapeError, match="1 seeds for 2 responses; give one seed per response"):
        sample(history_policy(0), prompts([[1], [2]]), sampling=config, seeds=[1])
    with pytest.raises(ShapeError, match="the prompt of row 1 is empty; give it a BOS token"):
        sample(history_policy(0), prompts([[1], []]), sampling=config, seeds=[1, 2])


def test_sampled_logprobs_can_be_trained_on():
    # Not inference tensors, which autograd refuses to save.
    batch = sample(history_policy(0), prompts(), sampling=SamplingConfig(max_new_tokens=3), seeds=row_seeds())
    weight = torch.ones(1, requires_grad=True)
    (weight * batch.token_columns["logprobs"]).sum().backward()
    assert weight.grad is not None
