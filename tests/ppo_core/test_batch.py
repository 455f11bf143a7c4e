import itertools
import math
from itertools import pairwise

import pytest
import torch
from cases import Draws, law, random_batch, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from ppo_core import AS_FEW_AS_POSSIBLE, ConfigError, Ragged, RolloutBatch, ShapeError, micro_batches, minibatches
from ppo_core.packing import pack_rows

lists = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6)
INT = torch.int64


def rows(ragged):
    return [ragged.row(i).tolist() for i in range(len(ragged))]


@law
@given(lists)
def test_rows_come_back_as_they_went_in(some):
    ragged = Ragged.from_rows(some, INT)
    assert len(ragged) == len(some)
    assert rows(ragged) == some
    assert ragged.lengths.tolist() == [len(row) for row in some]


@law
@given(lists, st.data())
def test_selected_rows_are_those_rows_in_that_order(some, data):
    chosen = data.draw(st.lists(st.integers(0, len(some) - 1), max_size=8)) if some else []
    assert rows(Ragged.from_rows(some, INT).select(tensor(chosen, dtype=INT))) == [some[i] for i in chosen]


@law
@given(lists, st.sampled_from(["left", "right"]), st.integers(0, 3))
def test_padding_stands_on_its_side_and_can_be_taken_off(some, side, extra):
    ragged = Ragged.from_rows(some, INT)
    width = max((len(row) for row in some), default=0) + extra
    padded, mask = ragged.padded(fill=-7, side=side, width=width), ragged.mask(side=side, width=width)
    for row, got, real in zip(some, padded.tolist(), mask.tolist(), strict=True):
        fill, true, false = [-7] * (width - len(row)), [True] * len(row), [False] * (width - len(row))
        assert got == (fill + row if side == "left" else row + fill)
        assert real == (false + true if side == "left" else true + false)
    assert rows(Ragged.from_padded(padded, mask)) == some


@law
@given(lists, lists)
def test_concatenated_rows_follow_each_other(these, those):
    parts = [Ragged.from_rows(these, INT), Ragged.from_rows(those, INT)]
    assert rows(Ragged.concatenate(parts)) == these + those


def test_rows_may_be_tensors_masks_may_select_and_rows_count_from_the_end():
    ragged = Ragged.from_rows([tensor([1.5]), tensor([2.5, 3.5])], torch.float32)
    assert rows(ragged.select(tensor([False, True]))) == [[2.5, 3.5]]
    assert ragged.row(-1).tolist() == [2.5, 3.5]
    with pytest.raises(IndexError):
        ragged.row(2)
    assert Ragged.from_padded(tensor([[1, 2, 3]]), tensor([[True, False, True]])).row(0).tolist() == [1, 3]


def test_offsets_that_do_not_fit_are_refused():
    values = torch.arange(4)
    for offsets, complaint in (
        (tensor([0, 2, 3]), "must run from 0 to 4"),
        (tensor([1, 4]), "must run from 0 to 4"),
        (tensor([], dtype=INT), "must run from 0 to 4"),
        (tensor([0, 3, 2, 4]), "offsets fall after row 1"),
        (tensor([0, 4], dtype=torch.int32), "flat int64 offsets"),
        (tensor([[0, 4]]), "flat int64 offsets"),
    ):
        with pytest.raises(ShapeError, match=complaint):
            Ragged(values, offsets)
    with pytest.raises(ShapeError, match="width=1 does not hold the longest row of 4"):
        Ragged(values, tensor([0, 4])).padded(fill=0, width=1)
    with pytest.raises(ShapeError, match=r"mask is \(1, 3\) but x is \(2, 2\)"):
        Ragged.from_padded(values.view(2, 2), torch.ones(1, 3, dtype=torch.bool))


def test_a_padded_batch_worked_example():
    batch = RolloutBatch(
        prompts=Ragged.from_rows([[5, 6, 7], [8]], INT),
        responses=Ragged.from_rows([[1], [2, 3]], INT),
        stopped=tensor([True, False]),
        token_columns={"values": tensor([0.5, 1.5, 2.5])},
    )
    padded = batch.padded()
    assert padded.input_ids.tolist() == [[5, 6, 7, 1], [8, 2, 3, 0]]
    assert padded.predicts_response.tolist() == [[False, False, True, False], [True, True, False, False]]
    assert padded.last.tolist() == [3, 4 + 2]
    assert padded.position_ids is None
    assert padded.response_mask.tolist() == [[True, False], [True, True]]
    assert padded.response_ids.tolist() == [1, 2, 3]
    assert padded.token_columns["values"].tolist() == [[0.5, 0.0], [1.5, 2.5]]
    assert batch.lengths.tolist() == [4, 3]
    # Alone, the second row needs less room.
    assert batch.padded([tensor([1])]).input_ids.tolist() == [[8, 2, 3]]
    assert batch.padded([tensor([1])], device="meta").token_columns["values"].device.type == "meta"
    # Both on one line, the second row first.
    packed = batch.padded([tensor([1, 0])])
    assert packed.input_ids.tolist() == [[8, 2, 3, 5, 6, 7, 1]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert packed.predicts_response.tolist() == [[True, True, False, False, False, True, False]]
    assert packed.last.tolist() == [2, 6]
    assert packed.response_ids.tolist() == [2, 3, 1]
    assert packed.token_columns["values"].tolist() == [[1.5, 2.5], [0.5, 0.0]]
    assert batch.padded(device="meta").input_ids.device.type == "meta"


@law
@given(seeds)
def test_columns_stay_with_their_tokens_through_select_concatenate_and_pad(seed):
    batch = random_batch(seed)
    order = Draws(seed + 1).permutation(len(batch))
    again = RolloutBatch.concatenate([batch.select(order[:2]), batch.select(order[2:])])
    assert rows(again.responses) == [batch.responses.row(int(i)).tolist() for i in order]
    assert rows(again.prompts) == [batch.prompts.row(int(i)).tolist() for i in order]
    assert rows(again.column("logprobs")) == [batch.column("logprobs").row(int(i)).tolist() for i in order]
    assert again.stopped.tolist() == batch.stopped[order].tolist()
    assert again.lengths.tolist() == batch.lengths[order].tolist()
    padded = again.padded()
    assert torch.equal(padded.token_columns["ids"], again.responses.padded(fill=0))
    assert torch.equal(padded.response_mask, again.responses.padded(fill=0) > 0)
    for i, (ids, predicts) in enumerate(zip(padded.input_ids, padded.predicts_response, strict=True)):
        row = [*again.prompts.row(i).tolist(), *again.responses.row(i).tolist()]
        assert ids.tolist() == row + [0] * (len(ids) - len(row))
        assert ids[predicts.nonzero()[:, 0] + 1].tolist() == again.responses.row(i).tolist()
        assert padded.last[i] == i * len(ids) + len(row) - 1


def test_columns_are_added_without_touching_the_batch():
    batch = random_batch(0)
    doubled = batch.with_columns(logprobs=batch.token_columns["ids"] * 2)
    assert torch.equal(doubled.token_columns["logprobs"], batch.token_columns["ids"] * 2)
    assert not torch.equal(batch.token_columns["logprobs"], doubled.token_columns["logprobs"])


def test_what_does_not_fit_together_is_refused_by_name():
    full, empty, three = (Ragged.from_rows(r, INT) for r in ([[1], [2]], [[1], []], [[1], [2], [3]]))
    stopped = tensor([True, True])
    with pytest.raises(ShapeError, match="the response of row 1 is empty; drop the row"):
        RolloutBatch(prompts=full, responses=empty, stopped=stopped)
    with pytest.raises(ShapeError, match="the prompt of row 1 is empty"):
        RolloutBatch(prompts=empty, responses=full, stopped=stopped)
    with pytest.raises(ShapeError, match="2 prompts, 3 responses and 2 entries of stopped"):
        RolloutBatch(prompts=full, responses=three, stopped=stopped)
    with pytest.raises(ShapeError, match=r"column 'values' is \(3,\) but there are 2 response tokens"):
        RolloutBatch(prompts=full, responses=full, stopped=stopped, token_columns={"values": torch.zeros(3)})
    batch = RolloutBatch(prompts=full, responses=full, stopped=stopped)
    with pytest.raises(ShapeError, match=r"batch 1 has columns \['values'\] but batch 0 has \[\]"):
        RolloutBatch.concatenate([batch, batch.with_columns(values=torch.zeros(2))])


@law
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60), st.integers(0, 50))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget, cost):
    groups = [group.tolist() for group in micro_batches(tensor(lengths, dtype=INT), budget, group_cost=cost)]
    flat = [row for group in groups for row in group]
    assert sorted(flat) == list(range(len(lengths)))
    assert flat == sorted(flat, key=lambda row: (-lengths[row], row))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget


@law
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30), st.integers(0, 20))
def test_micro_batches_are_the_cheapest_of_all_cuts(lengths, budget, cost):
    def price(groups):
        if any(len(group) > 1 and len(group) * max(group) > budget for group in groups):
            return math.inf
        return sum(len(group) * max(group) + cost for group in groups)

    ours = [[lengths[row] for row in group] for group in micro_batches(tensor(lengths), budget, group_cost=cost)]
    ordered = sorted(lengths, reverse=True)
    cuts = itertools.product([False, True], repeat=len(lengths) - 1)
    ways = [[i for i, cut in enumerate(chosen, start=1) if cut] for chosen in cuts]
    groupings = [[ordered[a:b] for a, b in pairwise([0, *ends, len(ordered)])] for ends in ways]
    assert price(ours) == min(map(price, groupings))


def test_micro_batches_worked_example():
    def groups(**settings):
        return [group.tolist() for group in micro_batches(tensor([3, 9, 3, 5]), 10, **settings)]

    # Rows of one length together: 9, 5 and 3 + 3.
    assert groups() == [[1], [3], [0, 2]]
    # As few as fit into 10 tokens: 5 + 3 padded to 5, or 3 + 3, which has less padding.
    assert groups(group_cost=AS_FEW_AS_POSSIBLE) == [[1], [3], [0, 2]]
    assert len(micro_batches(tensor([4, 3, 2, 1]), 12, group_cost=AS_FEW_AS_POSSIBLE)) == 2


@law
@given(seeds, st.data())
def test_rows_that_share_lines_are_the_same_rows(seed, data):
    batch = random_batch(seed, num_rows=7)
    order = Draws(seed + 1).permutation(7)
    cuts = sorted(data.draw(st.sets(st.integers(1, 6))))
    lines = order.tensor_split(cuts)
    packed, expected = batch.padded(lines), batch.select(order)
    assert torch.equal(packed.response_ids, expected.responses.values)
    assert torch.equal(packed.response_mask, expected.responses.mask())
    assert torch.equal(packed.token_columns["ids"], expected.responses.padded(fill=0))
    assert (packed.position_ids is None) == (len(lines) == 7)
    whole = [[*batch.prompts.row(i).tolist(), *batch.responses.row(i).tolist()] for i in range(7)]
    for number, line in enumerate(lines):
        tokens = [token for i in line.tolist() for token in whole[i]]
        width = packed.input_ids.shape[1]
        assert packed.input_ids[number].tolist() == tokens + [0] * (width - len(tokens))
        if packed.position_ids is not None:
            positions = [t for i in line.tolist() for t in range(len(whole[i]))]
            assert packed.position_ids[number].tolist() == positions + [0] * (width - len(tokens))
    after = packed.input_ids.flatten()[packed.predicts_response.flatten().nonzero()[:, 0] + 1]
    assert torch.equal(after, expected.responses.values)
    assert packed.input_ids.flatten()[packed.last].tolist() == [whole[i][-1] for i in order.tolist()]


@law
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60))
def test_lines_hold_every_row_once_within_their_room(lengths, room):
    lines = pack_rows(lengths, room)
    assert sorted(row for line in lines for row in line) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in line) for line in lines]
    assert all(total <= max(room, max(lengths)) for total in sums)
    assert sums == sorted(sums, reverse=True)
    # No two lines could have been one.
    assert all(a + b > max(room, max(lengths)) for a, b in itertools.combinations(sums, 2))


@law
@given(st.integers(1, 40), st.data(), seeds)
def test_minibatches_are_an_even_partition_and_a_function_of_the_seed(num_rows, data, seed):
    num_minibatches = data.draw(st.integers(1, num_rows))
    parts = minibatches(num_rows, num_minibatches, seed)
    assert len(parts) == num_minibatches
    assert sorted(torch.cat(parts).tolist()) == list(range(num_rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    again = minibatches(num_rows, num_minibatches, seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_every_row_reaches_every_minibatch_and_seeds_differ():
    first = torch.zeros(8)
    for seed in range(400):
        first[minibatches(8, 4, seed)[0]] += 1
    # 100 expected, standard deviation sqrt(400 * 1/4 * 3/4) = 8.7
    assert (first - 100).abs().max() < 35


def test_any_two_rows_are_as_likely_to_share_a_minibatch():
    together = torch.zeros(6, 6)
    for seed in range(400):
        for part in minibatches(6, 2, seed):
            together[part[:, None], part] += 1
    # two others of five: 160 expected, standard deviation sqrt(400 * 2/5 * 3/5) = 9.8
    assert (together[~torch.eye(6, dtype=torch.bool)] - 160).abs().max() < 40


def test_impossible_splits_are_refused():
    with pytest.raises(ConfigError, match="num_minibatches=4 cannot split 3 rows"):
        minibatches(3, 4, 0)
    with pytest.raises(ConfigError, match="token_budget=0 must be at least 1"):
        micro_batches(tensor([1]), 0)
