import math

import pytest
import reference
import torch
from cases import Draws, laid_out, law, left, right, rows_of, rubbish, seeds, spoiled
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck

from ppo_core import (
    ConfigError,
    EmptyMaskError,
    ShapeError,
    aggregate_loss,
    kl_loss,
    pg_loss,
    policy_loss,
    value_loss,
)

clipranges = st.sampled_from([0.2, (0.2, 0.28), (0.1, 3.0)])
dual_clips = st.sampled_from([None, 1.5, 3.0])
value_clips = st.sampled_from([None, 0.2, 1.0])
some_tokens = st.integers(1, 50)
some_responses = st.one_of(st.none(), st.integers(1, 9))
aggregations = st.sampled_from(["token_mean", "seq_mean"])
TRUE = tensor([[True]])


def kl_loss_without_statistics(*inputs, **counts):
    return kl_loss(*inputs, **counts), {}


# Each takes new numbers, two columns of data and the mask.
LOSSES = {
    "policy": (policy_loss, {"cliprange": 0.2, "dual_clip": 3.0}),
    "pg": (pg_loss, {}),
    "value": (value_loss, {"cliprange_value": 0.2}),
    "value without clip": (value_loss, {"cliprange_value": None}),
    "kl": (kl_loss_without_statistics, {"estimator": "k3", "direction": "reverse"}),
    "forward kl": (kl_loss_without_statistics, {"estimator": "k1", "direction": "forward"}),
}
every_loss = pytest.mark.parametrize(("loss_function", "settings"), LOSSES.values(), ids=LOSSES)


def case(seed):
    """New numbers, old ones near them (ratios from about 1/5 to 5: every branch of a clip is taken) and a third."""
    draws = Draws(seed)
    old = -draws.normal(4, 6).abs()
    return old + 0.8 * draws.normal(4, 6), old, draws.normal(4, 6), draws.mask_with_gaps()


def counts(mask, aggregation):
    return {"num_tokens": int(mask.sum()), "num_responses": len(mask) if aggregation == "seq_mean" else None}


def tokens_by_row(*columns, mask):
    """For each row the tuples of its tokens' entries, as plain numbers."""
    return [list(zip(*rows, strict=True)) for rows in zip(*(rows_of(x, mask) for x in columns), strict=True)]


def aggregate(term, rows, num_tokens, num_responses=None):
    return reference.aggregate([[term(*token) for token in row] for row in rows], num_tokens, num_responses)


def widths(cliprange):
    return cliprange if isinstance(cliprange, tuple) else (cliprange, cliprange)


@law
@given(seeds, some_tokens, some_responses)
def test_terms_are_aggregated_as_defined(seed, num_tokens, num_responses):
    terms, _, _, mask = case(seed)
    got = aggregate_loss(terms, mask, num_tokens=num_tokens, num_responses=num_responses)
    expected = reference.aggregate(rows_of(terms, mask), num_tokens, num_responses)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_aggregation_worked_example():
    # rows of (1, 2, 3) and (6): a token counts 12 / 4, a response (2 + 6) / 2
    terms = tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    mask = tensor([[True, True, True], [True, False, False]])
    assert aggregate_loss(terms, mask, num_tokens=4).item() == 3
    assert aggregate_loss(terms, mask, num_tokens=4, num_responses=2).item() == 4
    # Tokens of one response alone: no rows, one number per token.
    assert aggregate_loss(terms[0], mask[0], num_tokens=3, num_responses=1).item() == 2


def test_a_row_without_a_token_adds_nothing_to_a_mean_over_responses():
    terms = tensor([[1.0, 3.0], [torch.nan, torch.nan]], requires_grad=True)
    loss = aggregate_loss(terms, tensor([[True, True], [False, False]]), num_tokens=2, num_responses=1)
    loss.backward()
    assert loss.item() == 2
    assert terms.grad.tolist() == [[0.5, 0.5], [0.0, 0.0]]


@law
@given(seeds, clipranges, dual_clips, some_tokens, some_responses)
def test_policy_loss_and_its_statistics_equal_their_definitions(seed, cliprange, dual_clip, num_tokens, num_responses):
    *inputs, mask = case(seed)
    loss, stats = policy_loss(
        *inputs, mask, cliprange=cliprange, dual_clip=dual_clip, num_tokens=num_tokens, num_responses=num_responses
    )
    low, high = widths(cliprange)
    rows = tokens_by_row(*inputs, mask=mask)
    objective = aggregate(
        lambda *token: reference.policy_objective(*token, low, high, dual_clip), rows, num_tokens, num_responses
    )
    assert loss.item() == pytest.approx(-objective, abs=1e-9)
    clipfrac = aggregate(lambda *token: float(reference.policy_clip_binds(*token, low, high)), rows, num_tokens)
    expected = {"clipfrac": clipfrac, **expected_ratio_statistics(rows, num_tokens)}
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(expected, abs=1e-9)


def expected_ratio_statistics(rows, num_tokens):
    """Means over tokens even where the loss is a mean over responses."""
    return {
        # The rollout policy drew the tokens: it stands first in the divergence.
        "approx_kl": aggregate(lambda new, old, _: reference.estimate(old, new, "k3"), rows, num_tokens),
        "approx_kl_variance": sum(sum(reference.estimate(old, new, "k3") for new, old, _ in row) ** 2 for row in rows)
        / (num_tokens or sum(map(len, rows))) ** 2,
        "k1_kl": aggregate(lambda new, old, _: reference.estimate(old, new, "k1"), rows, num_tokens),
        "ratio_mean": aggregate(lambda new, old, _: math.exp(new) / math.exp(old), rows, num_tokens),
        "ratio_max_deviation": max(abs(math.exp(new) / math.exp(old) - 1) for row in rows for new, old, _ in row),
    }


@law
@given(seeds, some_tokens, some_responses)
def test_pg_loss_and_its_statistics_equal_their_definitions(seed, num_tokens, num_responses):
    *inputs, mask = case(seed)
    loss, stats = pg_loss(*inputs, mask, num_tokens=num_tokens, num_responses=num_responses)
    rows = tokens_by_row(*inputs, mask=mask)
    objective = aggregate(lambda new, _, advantage: new * advantage, rows, num_tokens, num_responses)
    assert loss.item() == pytest.approx(-objective, abs=1e-9)
    expected = expected_ratio_statistics(rows, num_tokens)
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(expected, abs=1e-9)


@law
@given(seeds, value_clips, some_tokens, some_responses)
def test_value_loss_and_its_statistics_equal_their_definitions(seed, clip, num_tokens, num_responses):
    *inputs, mask = case(seed)
    loss, stats = value_loss(*inputs, mask, cliprange_value=clip, num_tokens=num_tokens, num_responses=num_responses)
    rows = tokens_by_row(*inputs, mask=mask)

    def error(*token):
        return reference.value_error(*token, clip)

    def binds(*token):
        return float(error(*token) > reference.value_error(*token, None) + 1e-12)

    assert loss.item() == pytest.approx(aggregate(error, rows, num_tokens, num_responses), abs=1e-9)
    assert set(stats) == {"clipfrac"}
    assert stats["clipfrac"].item() == pytest.approx(aggregate(binds, rows, num_tokens))


@law
@given(
    seeds,
    st.sampled_from(["k1", "k2", "k3"]),
    st.sampled_from(["reverse", "forward"]),
    some_tokens,
    some_responses,
)
def test_kl_loss_equals_its_definition(seed, estimator, direction, num_tokens, num_responses):
    *inputs, mask = case(seed)
    loss = kl_loss(
        *inputs,
        mask,
        estimator=estimator,
        direction=direction,
        num_tokens=num_tokens,
        num_responses=num_responses,
    )
    expected = aggregate(
        lambda *token: reference.kl_loss(*token, estimator, direction),
        tokens_by_row(*inputs, mask=mask),
        num_tokens,
        num_responses,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@every_loss
@law
@given(seed=seeds, junk=rubbish, aggregation=aggregations)
def test_masked_places_change_neither_loss_nor_gradient_nor_statistics(
    loss_function, settings, seed, junk, aggregation
):
    *inputs, mask = case(seed)

    def run(fill):
        new, *data = (spoiled(x, mask, fill) for x in inputs)
        new.requires_grad_()
        loss, stats = loss_function(new, *data, mask, **counts(mask, aggregation), **settings)
        loss.backward()
        assert (new.grad[~mask] == 0).all()
        return [loss.detach(), new.grad, *stats.values()]

    assert all(torch.equal(a, b) for a, b in zip(run(0.0), run(junk), strict=True))


@every_loss
@law
@given(seed=seeds, junk=rubbish, aggregation=aggregations, extra=st.integers(0, 3))
def test_it_does_not_matter_where_in_its_row_a_token_stands(loss_function, settings, seed, junk, aggregation, extra):
    *inputs, with_gaps = case(seed)
    lengths = with_gaps.sum(dim=1).tolist()
    rows = [rows_of(x, with_gaps) for x in inputs]

    def run(mask):
        new, *data = (laid_out(column, mask, junk) for column in rows)
        new.requires_grad_()
        loss, stats = loss_function(new, *data, mask, **counts(mask, aggregation), **settings)
        loss.backward()
        return [loss.detach(), new.grad[mask], *stats.values()]

    expected = run(with_gaps)
    for mask in (right(lengths, max(lengths) + extra), left(lengths, max(lengths) + extra)):
        for got, same in zip(run(mask), expected, strict=True):
            torch.testing.assert_close(got, same, rtol=1e-12, atol=1e-12)


@every_loss
@law
@given(seed=seeds, cut=st.integers(1, 3), aggregation=aggregations)
def test_loss_gradient_and_statistics_depend_neither_on_the_split_of_a_minibatch_nor_on_row_order(
    loss_function, settings, seed, cut, aggregation
):
    new, *data = case(seed)
    order = Draws(seed + 1).permutation(4)

    def run(parts):
        leaf = new.clone().requires_grad_()
        whole = counts(data[-1], aggregation)
        results = [loss_function(leaf[rows], *(x[rows] for x in data), **whole, **settings) for rows in parts]
        sum(loss for loss, _ in results).backward()
        names = [name for name in results[0][1] if name != "ratio_max_deviation"]
        sums = [sum(stats[name] for _, stats in results) for name in names]
        return torch.stack([sum(loss for loss, _ in results).detach(), *sums]), leaf.grad

    whole, whole_grad = run([torch.arange(4)])
    split, split_grad = run([order[:cut], order[cut:]])
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split_grad, whole_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("loss_function", "settings"),
    [
        (policy_loss, {"cliprange": (0.2, 0.3), "dual_clip": 2.0}),
        (pg_loss, {}),
        (value_loss, {"cliprange_value": None}),
        (value_loss, {"cliprange_value": 0.5}),
    ],
)
@pytest.mark.parametrize("num_responses", [None, 4])
def test_gradients_equal_finite_differences(loss_function, settings, num_responses):
    for seed in range(2):
        new, *data = case(seed)
        assert gradcheck(
            lambda x, data=data: loss_function(x, *data, num_tokens=7, num_responses=num_responses, **settings)[0],
            new.requires_grad_(),
        )


@law
@given(seeds, aggregations)
def test_on_policy_the_ratio_is_one_and_the_gradient_is_minus_the_advantage_however_the_loss_is_named(
    seed, aggregation
):
    _, logprobs, advantages, mask = case(seed)
    num_tokens = int(mask.sum())
    weight = 1 / num_tokens if aggregation == "token_mean" else 1 / (4 * mask.sum(dim=1, keepdim=True))
    for loss_function, settings in ((policy_loss, {"cliprange": 0.2, "dual_clip": 3.0}), (pg_loss, {})):
        new_logprobs = logprobs.clone().requires_grad_()
        loss, stats = loss_function(new_logprobs, logprobs, advantages, mask, **counts(mask, aggregation), **settings)
        loss.backward()
        torch.testing.assert_close(new_logprobs.grad, torch.where(mask, -advantages * weight, 0.0))
        assert stats["ratio_mean"].item() == pytest.approx(1)
        assert stats["approx_kl"] == stats["k1_kl"] == stats["ratio_max_deviation"] == 0
        assert stats.get("clipfrac", 0) == 0


def test_policy_loss_worked_examples():
    # ratio 2: a gain is cut at 1.2, a loss counts in full or down to the dual clip
    new_logprobs, logprobs = tensor([[math.log(0.5)]]), tensor([[math.log(0.25)]])

    def loss(advantage, **settings):
        return policy_loss(new_logprobs, logprobs, tensor([[advantage]]), TRUE, num_tokens=1, **settings)[0].item()

    assert loss(3.0, cliprange=0.2) == pytest.approx(-3.6)
    assert loss(-3.0, cliprange=0.2) == pytest.approx(6.0)
    assert loss(-3.0, cliprange=0.2, dual_clip=1.5) == pytest.approx(4.5)
    assert loss(3.0, cliprange=0.2, dual_clip=1.5) == pytest.approx(-3.6)
    assert loss(3.0, cliprange=(0.2, 0.5)) == pytest.approx(-4.5)
    assert loss(3.0, cliprange=(0.2, 1.5)) == pytest.approx(-6.0)


def test_pg_loss_worked_example():
    # -log(1/4) * 3, whatever the ratio; the ratio of 1/4 to 1/2 is 1/2
    loss, stats = pg_loss(tensor([[math.log(0.25)]]), tensor([[math.log(0.5)]]), tensor([[3.0]]), TRUE, num_tokens=1)
    assert loss.item() == pytest.approx(3 * math.log(4))
    assert stats["ratio_mean"].item() == pytest.approx(0.5)
    assert stats["ratio_max_deviation"].item() == pytest.approx(0.5)
    assert stats["k1_kl"].item() == pytest.approx(math.log(2))


def test_value_loss_worked_examples():
    # from 0 towards a return of 1: at 0.5, with a clip at 0.2, the error counts as if the value were still 0.2
    def loss(new_value, target, clip):
        one, zero = tensor([[new_value]]), tensor([[0.0]])
        return value_loss(one, zero, tensor([[target]]), TRUE, cliprange_value=clip, num_tokens=1)[0].item()

    assert loss(0.5, 1.0, 0.2) == pytest.approx(0.32)
    assert loss(0.5, 1.0, None) == pytest.approx(0.125)
    assert loss(0.5, -1.0, 0.2) == pytest.approx(1.125)


def test_a_value_beyond_its_range_stops_moving_towards_the_return_but_not_back():
    def gradient(target):
        new_value = tensor([[0.5]], requires_grad=True)
        loss, _ = value_loss(new_value, tensor([[0.0]]), tensor([[target]]), TRUE, cliprange_value=0.2, num_tokens=1)
        loss.backward()
        return new_value.grad.item()

    assert gradient(1.0) == 0
    assert gradient(-1.0) == pytest.approx(1.5)


@every_loss
def test_statistics_carry_no_gradient(loss_function, settings):
    new, *data = case(0)
    _, stats = loss_function(new.requires_grad_(), *data, num_tokens=5, **settings)
    assert not any(value.requires_grad for value in stats.values())


@every_loss
def test_a_count_of_nothing_is_refused(loss_function, settings):
    x = tensor([[0.0]])
    with pytest.raises(EmptyMaskError, match="num_tokens=0 must be the response tokens of the minibatch, at least 1"):
        loss_function(x, x, x, TRUE, num_tokens=0, **settings)
    with pytest.raises(EmptyMaskError, match="num_responses=0 must be the responses of the minibatch, at least 1"):
        loss_function(x, x, x, TRUE, num_tokens=1, num_responses=0, **settings)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("loss_function", "settings"),
    [
        (policy_loss, {"cliprange": 0.2}),
        (pg_loss, {}),
        (value_loss, {"cliprange_value": None}),
        (kl_loss, {"estimator": "k1", "direction": "reverse"}),
    ],
)
def test_a_column_of_another_shape_is_refused_by_name(loss_function, settings, place):
    columns = [tensor([[0.0]]) for _ in range(3)]
    columns[place] = tensor([[0.0, 0.0]])
    # Without the check of types that the tests switch on: broadcasting would hide the mistake.
    unchecked = getattr(loss_function, "__wrapped__", loss_function)
    with pytest.raises(ShapeError, match=r"is \(1, 2\) but response_mask is \(1, 1\)"):
        unchecked(*columns, TRUE, num_tokens=1, **settings)


def test_a_dual_clip_inside_the_trust_region_is_refused():
    x = tensor([[0.0]])
    with pytest.raises(ConfigError, match=r"dual_clip=1\.0 must be above 1"):
        policy_loss(x, x, x, TRUE, cliprange=0.2, num_tokens=1, dual_clip=1.0)
