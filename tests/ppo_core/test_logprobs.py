import math

import pytest
import reference
import torch
from cases import Draws, law, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_core import ConfigError, ShapeError, entropy, gather_logprobs, linear_logprobs

temperatures = st.floats(0.2, 3)


@law
@given(seeds, temperatures)
def test_gathered_logprobs_equal_their_definition(seed, temperature):
    draws = Draws(seed)
    logits, token_ids = 3 * draws.normal(2, 3, 5), draws.integers(5, 2, 3)
    got = gather_logprobs(logits, token_ids, temperature=temperature)
    for z, token, logprob in zip(logits.view(-1, 5), token_ids.view(-1), got.view(-1), strict=True):
        assert logprob.item() == pytest.approx(reference.logprob(z.tolist(), int(token), temperature), abs=1e-10)


@law
@given(seeds)
def test_entropy_equals_its_definition(seed):
    logits = 3 * Draws(seed).normal(2, 3, 5)
    for z, h in zip(logits.view(-1, 5), entropy(logits).view(-1), strict=True):
        assert h.item() == pytest.approx(reference.entropy(z.tolist()), abs=1e-10)


@law
@given(seeds, st.floats(-50, 50))
def test_neither_notices_a_shift_of_all_logits(seed, shift):
    draws = Draws(seed)
    logits, token_ids = draws.normal(2, 3, 5), draws.integers(5, 2, 3)
    torch.testing.assert_close(gather_logprobs(logits + shift, token_ids), gather_logprobs(logits, token_ids))
    torch.testing.assert_close(entropy(logits + shift), entropy(logits))


def test_gradients_equal_finite_differences():
    draws = Draws(0)
    logits, token_ids = draws.normal(2, 3, 5).requires_grad_(), draws.integers(5, 2, 3)
    assert gradcheck(lambda z: gather_logprobs(z, token_ids, temperature=0.7), logits)
    assert gradcheck(entropy, logits)


def test_worked_examples():
    # odds 1 : 3, and with temperature 1/2 their squares 1 : 9
    logits, token = tensor([[[0.0, math.log(3)]]]), tensor([[1]])
    assert gather_logprobs(logits, token).item() == pytest.approx(math.log(3 / 4))
    assert gather_logprobs(logits, token, temperature=0.5).item() == pytest.approx(math.log(9 / 10))
    assert entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8))


def test_a_token_that_cannot_occur_contributes_no_entropy_and_no_nan():
    logits = tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    h = entropy(logits)
    h.sum().backward()
    assert h.item() == pytest.approx(math.log(2))
    assert logits.grad.tolist() == [[[0.0, 0.0, 0.0]]]


def test_half_precision_logits_are_summed_in_single_precision():
    logits = torch.full((1, 1, 100_000), 1.0, dtype=torch.bfloat16)
    for result in (-gather_logprobs(logits, tensor([[5]])), entropy(logits)):
        assert result.dtype == torch.float32
        assert result.item() == pytest.approx(math.log(100_000), rel=1e-5)


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *(x.numel() for x in made)])
        return result


def linear_case(seed, *shape):
    """Hidden states of three numbers and a vocabulary of five."""
    draws = Draws(seed)
    return draws.normal(*shape, 3), draws.normal(5, 3), draws.integers(5, *shape)


@law
@given(
    seeds,
    temperatures,
    st.integers(1, 8),
    st.sampled_from([(), (1,), (7,), (2, 3), (2, 1, 3)]),
    st.booleans(),
    st.booleans(),
)
def test_linear_logprobs_and_their_gradients_equal_those_of_the_full_logits(
    seed, temperature, chunk, shape, with_bias, with_entropy
):
    hidden, weight, token_ids = linear_case(seed, *shape)
    weights = Draws(seed + 1).normal(2, *shape)
    bias = Draws(seed + 2).normal(5)

    def run(function):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, *([bias] if with_bias else []))]
        results = function(*leaves)
        sum((x * y).sum() for x, y in zip(weights, results, strict=False)).backward()
        return [*(x.detach() for x in results), *(leaf.grad for leaf in leaves)]

    def all_at_once(*leaves):
        choices = Categorical(logits=torch.nn.functional.linear(*leaves) / temperature)
        return (choices.log_prob(token_ids), choices.entropy())[: 1 + with_entropy]

    def in_chunks(hidden, weight, bias=None):
        settings = {"bias": bias, "temperature": temperature, "chunk": chunk}
        if with_entropy:
            return linear_logprobs(hidden, weight, token_ids, with_entropy=True, **settings)
        return (linear_logprobs(hidden, weight, token_ids, **settings),)

    for got, expected in zip(run(in_chunks), run(all_at_once), strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2])
def test_linear_logprobs_of_tokens_that_a_bias_rules_out(chunk):
    # Two tokens of equal odds and one that cannot occur, for two states: the last one is a chunk of its own, or is not.
    hidden, weight = torch.ones(2, 1, requires_grad=True), torch.zeros(3, 1, requires_grad=True)
    bias = tensor([0.0, 0.0, -math.inf])
    logprobs, entropies = linear_logprobs(hidden, weight, tensor([0, 1]), bias=bias, chunk=chunk, with_entropy=True)
    assert logprobs.tolist() == pytest.approx([math.log(1 / 2)] * 2)
    assert entropies.tolist() == pytest.approx([math.log(2)] * 2)
    (logprobs[0] + entropies.sum()).backward()
    # d logprob / d z is (1/2, -1/2, 0) in the first state; the entropy is at its maximum.
    assert weight.grad[:, 0].tolist() == pytest.approx([1 / 2, -1 / 2, 0])
    assert hidden.grad.tolist() == [[0], [0]]


def test_linear_logprobs_worked_example():
    # logits (0, log 3) of a hidden state of 1, twice that of a state of 2: odds 1 : 3 and 1 : 9
    hidden, weight = tensor([[1.0], [2.0]]), tensor([[0.0], [math.log(3)]])
    logprobs, entropies = linear_logprobs(hidden, weight, tensor([1, 0]), with_entropy=True)
    assert logprobs.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 10)])
    assert entropies[0].item() == pytest.approx(math.log(4) - 3 / 4 * math.log(3))


@pytest.mark.parametrize("with_entropy", [False, True])
def test_linear_logprobs_never_hold_the_logits_of_all_tokens(with_entropy):
    num_tokens, vocabulary, size, chunk = 60, 50, 4, 6
    draws = Draws(0)
    hidden, weight = draws.normal(num_tokens, size).requires_grad_(), draws.normal(vocabulary, size).requires_grad_()
    token_ids = draws.integers(vocabulary, num_tokens)
    kept = []

    def keep(x):
        kept.append(x.numel())
        return x

    with Sizes() as sizes, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = linear_logprobs(hidden, weight, token_ids, chunk=chunk, with_entropy=with_entropy)
        (sum(x.sum() for x in result) if with_entropy else result.sum()).backward()
    assert sizes.largest == chunk * vocabulary
    # Nor in pieces, for the gradient.
    assert sum(kept) < num_tokens * vocabulary
    assert hidden.grad.abs().sum() > 0
    assert weight.grad.abs().sum() > 0


def test_linear_logprobs_of_half_precision_states_are_summed_in_single_precision():
    hidden, weight = torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(100_000, 1, dtype=torch.bfloat16)
    for result in linear_logprobs(hidden, weight, tensor([5]), with_entropy=True):
        assert result.dtype == torch.float32
        assert abs(result.item()) == pytest.approx(math.log(100_000), rel=1e-5)


def test_linear_logprobs_of_no_token_are_none_and_what_does_not_fit_is_refused():
    hidden, weight, token_ids = linear_case(0, 2)
    assert linear_logprobs(hidden[:0], weight, token_ids[:0]).shape == (0,)
    with pytest.raises(ConfigError, match="chunk=0 must be at least 1"):
        linear_logprobs(hidden, weight, token_ids, chunk=0)
    unchecked = getattr(linear_logprobs, "__wrapped__", linear_logprobs)
    with pytest.raises(ShapeError, match=r"token_ids is \(1,\) but hidden is \(2, 3\); give one id per row"):
        unchecked(hidden, weight, token_ids[:1])
