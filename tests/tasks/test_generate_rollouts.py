"""Which rows an iteration has, and which tokens they may hold."""

from collections import Counter

import pytest
import torch
from small_world import LENGTH, SAMPLING, advantages, external, generate, make_world, rows, score
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppo_core import SamplingConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


NUM_PROMPTS = 16
"""Of the world, without those held out."""


@pytest.mark.parametrize("per_iteration", [NUM_PROMPTS + 1, 40, 3 * NUM_PROMPTS])
def test_an_iteration_of_more_prompts_than_there_are_has_as_many_rows_as_asked_for(world, per_iteration):
    bench, base, data, _ = world
    (ref,) = generate(bench, base, data, prompts_per_iteration=per_iteration, samples_per_prompt=2)
    table = rows(ref)
    assert len(table) == 2 * per_iteration
    assert len({row["rollout_id"] for row in table}) == len(table)
    # Each pass has every prompt once: none comes more than once oftener than another.
    counts = Counter(row["prompt_id"] for row in table)
    assert len(counts) == NUM_PROMPTS
    assert set(counts.values()) <= {2 * (per_iteration // NUM_PROMPTS), 2 * -(-per_iteration // NUM_PROMPTS)}
    for prompt_id, count in counts.items():
        of_prompt = [row for row in table if row["prompt_id"] == prompt_id]
        assert [row["sample_index"] for row in of_prompt] == list(range(count))
        for row in of_prompt:
            assert row["rollout_id"] == f"r1.i1.s0.{prompt_id}.{row['sample_index']}"


@pytest.mark.parametrize(("per_iteration", "shards"), [(5, 5), (7, 3), (NUM_PROMPTS, NUM_PROMPTS)])
def test_no_shard_is_empty_where_a_pass_over_the_prompts_ends(world, per_iteration, shards):
    bench, base, data, _ = world
    for iteration in range(1, 5):
        refs = generate(bench, base, data, prompts_per_iteration=per_iteration, shards=shards, iteration=iteration)
        counts = [len(rows(ref)) for ref in refs]
        assert sum(counts) == per_iteration
        assert max(counts) - min(counts) <= 1


def test_a_prompt_that_comes_again_draws_another_response(world):
    bench, base, data, _ = world
    (ref,) = generate(bench, base, data, prompts_per_iteration=3 * NUM_PROMPTS)
    drawn = {}
    for row in rows(ref):
        drawn.setdefault(row["prompt_id"], []).append(tuple(row["response_token_ids"]))
    assert all(len(set(responses)) == 3 for responses in drawn.values())


def test_rows_of_prompts_that_come_once_are_the_same_whatever_comes_after_them(world):
    bench, base, data, _ = world
    (once,) = generate(bench, base, data, prompts_per_iteration=NUM_PROMPTS)
    (again,) = generate(bench, base, data, prompts_per_iteration=NUM_PROMPTS + 5)
    assert rows(again)[:NUM_PROMPTS] == rows(once)


def test_occurrences_in_other_shards_count(world):
    bench, base, data, _ = world
    asked = {"prompts_per_iteration": 2 * NUM_PROMPTS + 3, "samples_per_prompt": 2}
    (whole,) = generate(bench, base, data, **asked)
    shards = [row for ref in generate(bench, base, data, shards=5, **asked) for row in rows(ref)]
    kept = ("prompt_id", "sample_index", "response_token_ids")
    assert [[row[key] for key in kept] for row in shards] == [[row[key] for key in kept] for row in rows(whole)]


def test_all_samples_of_a_prompt_are_one_group_however_often_it_comes(world):
    """Leave-one-out by its definition, over all rows of the prompt."""
    bench, base, data, _ = world
    (ref,) = generate(bench, base, data, prompts_per_iteration=NUM_PROMPTS + 6, samples_per_prompt=2)
    scored = score(bench, base, ref, LENGTH, critic=None)
    experience = advantages(bench, [scored], base, algorithm="rloo", kl_coef=0.0)
    table = rows(experience)
    assert Counter(Counter(row["prompt_id"] for row in table).values()) == {2: NUM_PROMPTS - 6, 4: 6}
    for row in table:
        others = [
            other["score"]
            for other in table
            if other["prompt_id"] == row["prompt_id"] and other["rollout_id"] != row["rollout_id"]
        ]
        expected = row["score"] - sum(others) / len(others)
        assert row["advantages"] == pytest.approx([expected] * len(row["advantages"]), abs=1e-5)


def a_padded_model(base, directory, extra):
    """The model with ``extra`` more rows in its embedding and head than its tokenizer has tokens."""
    model = AutoModelForCausalLM.from_pretrained(base.path)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer) + extra, mean_resizing=False)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return external(directory), len(tokenizer)


@pytest.mark.parametrize("extra", [1, 64, 300])
@pytest.mark.parametrize("sampling", [SAMPLING, SamplingConfig(max_new_tokens=8, temperature=1.5, top_k=40, top_p=0.9)])
def test_ids_that_stand_for_no_token_are_never_sampled(world, tmp_path, extra, sampling):
    bench, base, data, _ = world
    padded, num_tokens = a_padded_model(base, tmp_path / "padded", extra)
    (ref,) = generate(bench, padded, data, prompts_per_iteration=16, samples_per_prompt=4, sampling=sampling)
    table = rows(ref)
    assert max(id for row in table for id in row["response_token_ids"]) < num_tokens
    # Logarithms of what each token has of the whole distribution, ids without a token included: the trainer's.
    model = AutoModelForCausalLM.from_pretrained(padded.path).eval()
    for row in table[:8]:
        ids = row["prompt_token_ids"] + row["response_token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(row["prompt_token_ids"]) - 1 : -1]
        assert logits.shape[1] == num_tokens + extra
        of_all = (logits / sampling.temperature).log_softmax(-1)
        expected = [of_all[t, token].item() for t, token in enumerate(row["response_token_ids"])]
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
