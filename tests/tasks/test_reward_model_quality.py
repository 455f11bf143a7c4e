"""How good a reward model is on preferences that it never saw, and when that stops a run."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_world import a_model, make_world, prepare_config, train_reward_model, write_rows

from tasks.config.data import Source
from tasks.config.execution import HealthConfig
from tasks.contract.gates import Gates
from tasks.errors import UnhealthyError
from tasks.scoring.held_out_pairs import clustered_error, held_out_pairs, pairs_table, quality_of
from tasks.store.manifest import Place
from tasks.text.tokens import load_tokenizer
from tasks.train_reward_model import require_better_than_chance


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(a_model(tmp_path_factory.mktemp("model")).directory))


def preference(responses, ranks, number=0):
    return {"prompt": f"question {number}:", "messages": "", "responses": responses, "ranks": ranks}


def quality(tokenizer, rows, score):
    """Of a model that scores a response by its text."""

    def scores_of(token_ids):
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in token_ids]
        return torch.tensor([score(text.partition(":")[2].strip()) for text in texts])

    return quality_of(held_out_pairs(rows, tokenizer, 4096, scores_of))


def test_pairs_keep_their_texts_scores_and_lengths_in_the_order_of_the_preferences(tokenizer):
    rows = [
        preference([" go", " the red lamp", " the"], [2, 1, 1], 0),
        preference([" thank you now", " go"], [1, 2], 1),
    ]
    rows = [{**row, "preference_id": f"p{i}", "margin": None, "source": 2 - i} for i, row in enumerate(rows)]
    pairs = held_out_pairs(rows, tokenizer, 8, lambda token_ids: torch.tensor([float(len(ids)) for ids in token_ids]))
    table = pairs_table(rows, pairs).to_pylist()
    assert [(row["preference_id"], row["chosen"], row["rejected"]) for row in table] == [
        ("p0", " the red lamp", " go"), ("p0", " the", " go"), ("p1", " thank you now", " go"),
    ]  # fmt: skip
    assert [row["source"] for row in table] == [2, 2, 1]
    assert all(row["score_margin"] == row["chosen_score"] - row["rejected_score"] == row["longer_by"] for row in table)


# What is measured


def test_accuracy_is_told_apart_by_which_response_is_the_longer_one(tokenizer):
    # Five pairs: the chosen one is longer in three, shorter in one, as long in one. By length alone, three are right.
    pairs = [
        ("the lamp is on the table", "go"),
        ("thank you now", "go"),
        ("the red lamp", "the"),
        ("go", "the lamp is on the table"),
        ("go", "go"),
    ]
    rows = [preference([f" {chosen}", f" {rejected}"], [1, 2], i) for i, (chosen, rejected) in enumerate(pairs)]
    found = quality(tokenizer, rows, lambda text: float(len(text)))
    assert (found["preferences"], found["pairs"]) == (5, 5)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert (found["accuracy_chosen_longer"], found["accuracy_chosen_shorter"]) == (1.0, 0.0)
    turned = quality(tokenizer, rows, lambda text: -float(len(text)))
    assert (turned["accuracy_chosen_longer"], turned["accuracy_chosen_shorter"]) == (0.0, 1.0)


def test_length_is_that_of_tokens_and_not_of_characters(tokenizer):
    # Words of the tokenizer's are a token or two; a text that it never saw is a token for nearly each letter.
    chosen, rejected = " the lamp is on the table", " zqxjkvwzqxjkvwzqxjkv"
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (chosen, rejected)]
    assert lengths[0] < lengths[1]
    assert len(chosen) > len(rejected)
    found = quality(tokenizer, [preference([chosen, rejected], [1, 2])], lambda text: float("lamp" in text))
    assert (found["accuracy_chosen_longer"], found["accuracy_chosen_shorter"]) == (None, 1.0)


def test_pairs_of_equal_rank_count_nowhere_and_a_ranking_gives_all_others(tokenizer):
    row = preference([" go", " the lamp", " thank you now"], [2, 1, 2])
    found = quality(tokenizer, [row], lambda text: float(len(text)))
    # The lamp against go is right, against thank you now wrong.
    assert (found["preferences"], found["pairs"], found["accuracy"]) == (1, 2, 0.5)


def test_equal_scores_are_not_right(tokenizer):
    assert quality(tokenizer, [preference([" a", " b"], [1, 2])], lambda _: 0.0)["accuracy"] == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_error_of_pairs_of_their_own_is_the_textbooks(is_right):
    share = sum(is_right) / len(is_right)
    expected = math.sqrt(share * (1 - share) / len(is_right))
    assert clustered_error(is_right, list(range(len(is_right)))) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 6))
def test_pairs_that_are_right_together_say_no_more_than_one(is_right, copies):
    alone = clustered_error(is_right, list(range(len(is_right))))
    together = clustered_error(
        [right for right in is_right for _ in range(copies)], [i for i in range(len(is_right)) for _ in range(copies)]
    )
    assert together == pytest.approx(alone, abs=1e-12)


# What stops a run


def measured(right, pairs, preferences=None):
    share = right / pairs
    return {
        "preferences": preferences or pairs,
        "pairs": pairs,
        "accuracy": share,
        "accuracy_error": math.sqrt(share * (1 - share) / pairs),
    }


def outcome(found, *, limit=0.5, action="stop"):
    """None where the run goes on without a word, else what it says, and whether it stops."""
    warnings = []
    health = HealthConfig(min_reward_model_accuracy=limit, action=action)
    gates = Gates(SimpleNamespace(health=health, warn=warnings.append))
    try:
        require_better_than_chance(found, health.min_reward_model_accuracy, gates)
    except UnhealthyError as error:
        return "stops", str(error)
    return ("warns", warnings[0]) if warnings else None


def test_a_coin_stops_the_run_and_says_how_sure_that_is():
    verdict, said = outcome(measured(17, 36))
    assert verdict == "stops"
    assert "0.47 ± 0.08 of 36 held-out pairs" in said
    assert "health.min_reward_model_accuracy=0.5" in said
    assert said.endswith("or set health.action: warn to go on")


@pytest.mark.parametrize(
    ("right", "pairs", "stops"),
    [
        # sqrt(p (1 - p) / n) at 36 pairs is 0.083 around a half: 21 of 36, 0.583, is a hair above 0.5 + 0.082.
        (21, 36, False),
        (20, 36, True),
        # At 2500 pairs it is 0.01.
        (1270, 2500, True),
        (1280, 2500, False),
        (0, 36, True),
        (36, 36, False),
        (18, 25, False),
    ],
)
def test_the_accuracy_has_to_exceed_the_limit_by_a_standard_error(right, pairs, stops):
    found = outcome(measured(right, pairs))
    assert (found is not None and found[0] == "stops") == stops


@pytest.mark.parametrize("right", [0, 1, 2, 4])
def test_a_handful_of_preferences_stops_nothing(right):
    found = outcome(measured(right, 4))
    if right == 4:
        assert found is None
    else:
        verdict, said = found
        assert verdict == "warns"
        assert "of 4 held-out pairs, too few to tell it from chance" in said


def test_it_is_preferences_that_are_counted_and_not_their_pairs():
    # Ten rankings of four have sixty pairs.
    verdict, _ = outcome(measured(27, 60, preferences=10))
    assert verdict == "warns"


def test_the_limit_is_a_setting():
    assert outcome(measured(30, 36), limit=0.9)[0] == "stops"
    assert outcome(measured(17, 36), limit=0.0) is None
    assert outcome(measured(17, 36), action="warn")[0] == "warns"


def test_a_run_whose_labels_are_noise_stops_before_it_commits_a_reward_model(tmp_path):
    bench, base, _, _ = make_world(tmp_path)
    # The same two answers to all questions, either of them chosen as often.
    pairs = [
        {"prompt": f"question {i}:", "chosen": (" yes", " no")[i % 2], "rejected": (" no", " yes")[i % 2]}
        for i in range(120)
    ]
    config = prepare_config(
        tmp_path,
        preferences=(Source(path=write_rows(tmp_path / "noise.jsonl", pairs)),),
        held_out_preferences=0.5,
    )
    data = bench.run("prepare_data", config, place=Place(2), base=base)
    before = len(list(bench.store.manifests()))
    with pytest.raises(UnhealthyError, match=r"the reward model is right for 0\.\d\d ± 0\.0\d of \d\d held-out pairs"):
        train_reward_model(bench, base, data, epochs=1, calibration_samples=4)
    assert len(list(bench.store.manifests())) == before
    bench.health = HealthConfig(action="warn")
    ref = train_reward_model(bench, base, data, epochs=1, calibration_samples=4)
    metrics = bench.metrics(ref)
    assert metrics["health/warnings"] == 1.0
    assert metrics["reward_model/accuracy_error"] == pytest.approx(0.065, abs=0.01)
