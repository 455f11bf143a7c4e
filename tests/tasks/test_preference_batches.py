"""What an optimizer step of the reward model holds: pairs, however they were written down."""

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import make_world, train_reward_model, write_rows

from tasks.config.data import Source
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Place
from tasks.train_reward_model import batches_of_pairs, pairs_in

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("ranks", "pairs"), [([1, 2], 1), ([1, 2, 3, 4], 6), ([3, 1, 1, 3], 4), ([1, 1], 0), (list(range(25)), 300)]
)
def test_a_ranking_counts_the_pairs_that_it_orders_and_a_tie_is_none(ranks, pairs):
    assert pairs_in(ranks) == pairs


@given(sizes, st.integers(1, 64))
def test_every_preference_is_in_one_batch_whole_and_in_order(num_pairs, batch_size):
    order = list(reversed(range(len(num_pairs))))
    batches = batches_of_pairs(order, num_pairs, batch_size)
    assert [preference for batch in batches for preference in batch] == order
    assert all(batches)


@given(st.integers(1, 200), st.integers(1, 64))
def test_batches_of_pairs_alone_hold_exactly_as_many_as_asked_for(number, batch_size):
    batches = batches_of_pairs(range(number), [1] * number, batch_size)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * ((number - 1) // batch_size)


@given(sizes, st.integers(1, 64))
def test_no_other_cut_after_it_brings_a_batch_nearer_to_its_size(num_pairs, batch_size):
    batches = batches_of_pairs(range(len(num_pairs)), num_pairs, batch_size)
    for batch, after in pairwise(batches):
        own = sum(num_pairs[i] for i in batch)
        assert abs(own + num_pairs[after[0]] - batch_size) > abs(own - batch_size)
        shorter = own - num_pairs[batch[-1]]
        assert len(batch) == 1 or abs(own - batch_size) <= abs(shorter - batch_size)


def test_a_ranking_of_more_pairs_than_a_batch_is_a_batch_of_its_own():
    assert batches_of_pairs([0, 1, 2], [300, 300, 6], 32) == [[0], [1], [2]]
    # Six rankings of 6 pairs: 30 is nearer to 32 than 36.
    assert batches_of_pairs(range(6), [6] * 6, 32) == [[0, 1, 2, 3, 4], [5]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_same_data_takes_as_many_steps_as_rankings_as_it_does_as_pairs(world, tmp_path):
    bench, base, _, config = world
    answers = [" thank you", " thank you!", " go", " away"]
    rankings = [{"prompt": f"q {i}:", "responses": answers, "ranks": [1, 2, 3, 4]} for i in range(30)]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["responses"][a], "rejected": row["responses"][b]}
        for row in rankings
        for a, b in combinations(range(4), 2)
    ]
    steps = {}
    for name, rows in (("rankings", rankings), ("pairs", pairs)):
        source = (Source(path=write_rows(tmp_path / f"{name}.jsonl", rows)),)
        settings = config.model_copy(update={"data": config.data.model_copy(update={"preferences": source})})
        data = bench.run("prepare_data", settings, place=Place(1), base=base)
        trained = train_reward_model(bench, base, data, epochs=2, batch_size=12)
        num_pairs = sum(pairs_in(row["ranks"]) for row in read_dataset(data.directory / "preferences").to_pylist())
        steps[name] = bench.metrics(trained)["reward_model/steps"]
        assert steps[name] == 2 * math.ceil(num_pairs / 12)
    # A tenth was set aside: 162 pairs in either form.
    assert steps == {"rankings": 28.0, "pairs": 28.0}
