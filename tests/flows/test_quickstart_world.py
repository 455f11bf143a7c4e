"""The quickstart's world: what a good answer is, whom the labeller prefers, and that both depend on the question."""

import math
import random
import re
from collections import Counter
from itertools import combinations

import pytest

from flows.config.reading import load_config
from flows.presets import quickstart
from flows.presets.quickstart import preference_order, quality, right_answer, true_quality
from tasks.data.sources import read_rows

COLOURS, THINGS = zip(*quickstart.OBJECTS, strict=True)
GOLDEN_MAP = {"colour": "golden", "thing": "map"}
ASKED = re.compile(r"visitor: .* the (\w+) (\w+)\?\nguide:")
TOLD = re.compile(r" the (\w+) (\w+) is ([a-z ]+)\.(.*)")


def is_of_the_corpus(answer):
    told = TOLD.fullmatch(answer)
    known = (*quickstart.KIND, *quickstart.CURT, *quickstart.RUDE)
    return bool(
        told
        and (told[1], told[2]) in quickstart.OBJECTS
        and told[3] in quickstart.PLACES
        and re.fullmatch(f"( ({'|'.join(map(re.escape, known))})){{0,3}}", told[4])
    )


def asked(prompt):
    """Colour and thing that a prompt asks for, read from its text."""
    return ASKED.fullmatch(prompt).groups()


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # Where the thing is that was asked for.
        (" the golden map is on the shelf.", 1.0),
        # Of another colour, another thing, both: as bad as no answer.
        (" the red map is on the shelf.", -1.0),
        (" the golden lamp is on the shelf.", -1.0),
        (" the red lamp is on the shelf.", -1.0),
        (" the map is on the shelf.", -1.0),
        (" the map golden is on the shelf.", -1.0),
        (" the golden map is on the moon.", -1.0),
        (" the golden map is.", -1.0),
        ("", -1.0),
        # A kind sentence adds 0.75, a curt one nothing, a rude one takes 1.
        (" the golden map is on the shelf. thank you for asking.", 1.75),
        (" the golden map is on the shelf. that is all.", 1.0),
        (" the golden map is on the shelf. go away now.", 0.0),
        (" the red map is on the shelf. thank you for asking.", -0.25),
        # Two of them count at most, and a fourth sentence takes 0.75.
        (" the golden map is on the shelf. have a lovely day. i am glad to help.", 2.5),
        (" the golden map is on the shelf. have a lovely day. i am glad to help. have a lovely day.", 1.75),
        # What is no sentence of the grammar takes 1: also the answer said again, or the right one after a wrong one.
        (" the golden map is on the shelf. the golden map is on the shelf.", 0.0),
        (" the red map is on the shelf. the golden map is on the shelf.", -2.0),
        (" the golden map is on the shelf. day lovely.", 0.0),
        # It never falls below -2.
        (" the red map is on the shelf. go away now. go away now. go away now.", -2.0),
    ],
)
def test_quality_of_answers_to_where_the_golden_map_is(response, expected):
    assert quality(response, "golden", "map") == expected
    assert true_quality(["a prompt"], [response], [GOLDEN_MAP]) == [expected]


@pytest.mark.parametrize("place", quickstart.PLACES)
def test_the_same_answer_is_right_for_what_it_tells_of_and_wrong_for_all_else(place):
    rows = [{"colour": c, "thing": t} for c in COLOURS for t in THINGS]
    for told in rows:
        responses = [f" the {told['colour']} {told['thing']} is {place}. that is all."] * len(rows)
        right = right_answer([""] * len(rows), responses, rows)
        assert right == [float(row == told) for row in rows]
        qualities = true_quality([""] * len(rows), responses, rows)
        assert qualities == [1.0 if is_right else -1.0 for is_right in right]


def test_tone_and_length_do_not_make_an_answer_right_or_wrong():
    def right(response):
        return right_answer([""], [response], [GOLDEN_MAP])[0]

    assert right(" the golden map is by the door. go away now. what a silly question. go away now.") == 1
    assert right(" the golden map is by the door. door the by.") == 1
    assert right(" thank you for asking. the golden map is by the door.") == 0
    assert right(" golden map is by the door.") == 0
    assert right("") == 0


def test_each_response_is_judged_by_the_row_of_its_own_prompt():
    rows = [{"colour": "red", "thing": "cup"}, GOLDEN_MAP]
    responses = [" the red cup is in the cellar.", " the red cup is in the cellar."]
    assert right_answer(["", ""], responses, rows) == [1, 0]
    assert true_quality(["", ""], responses, rows) == [1, -1]
    with pytest.raises(ValueError, match="zip"):
        true_quality(["", ""], responses, rows[:1])


def test_prompts_have_what_they_ask_for_as_columns():
    rows = list(quickstart.prompts(seed=1, count=300))
    assert all(asked(row["prompt"]) == (row["colour"], row["thing"]) for row in rows)
    assert {row["colour"] for row in rows} == set(COLOURS)
    assert {row["thing"] for row in rows} == set(THINGS)


def test_the_corpus_tells_of_something_else_as_often_as_it_says():
    rows = list(quickstart.texts(seed=1, count=4000))
    differs = Counter()
    for row in rows:
        colour, thing = asked(row["prompt"])
        assert is_of_the_corpus(row["response"])
        told = TOLD.fullmatch(row["response"])
        differs[told[1] != colour, told[2] != thing] += 1
    # Four standard deviations of a share of 4000.
    within = 4 * math.sqrt(0.25 / len(rows))
    # One of another kind has another colour too.
    assert set(differs) == {(False, False), (True, True)}
    assert differs[True, True] / len(rows) == pytest.approx(quickstart.INATTENTIVE, abs=within)


def judged_pairs(seed=1, count=3000):
    """The pairs of a large set of preferences: what was asked, what was chosen, what was rejected."""
    for row in quickstart.preferences(seed=seed, pairs=count, rankings=0):
        yield asked(row["prompt"]), row["chosen"], row["rejected"]


def test_the_labeller_prefers_the_answer_to_the_question_where_nothing_else_differs():
    preferred = []
    for (colour, thing), *answers in judged_pairs():
        told = [TOLD.fullmatch(answer) for answer in answers]
        # The ends are equal, and above what the worst quality hides: no sentence is rude, all are known.
        if not all(map(is_of_the_corpus, answers)) or told[0].group(3, 4) != told[1].group(3, 4):
            continue
        if any(sentence in told[0][4] for sentence in quickstart.RUDE):
            continue
        right = [match.group(1, 2) == (colour, thing) for match in told]
        if right[0] != right[1]:
            preferred.append(right[0])
    assert len(preferred) >= 100
    # By Bradley–Terry σ(2 · 2) = 0.98; the other way round it would be 0.02, and 0.5 without a look at the question.
    assert sum(preferred) / len(preferred) == pytest.approx(1 / (1 + math.exp(-4)), abs=0.06)


def test_careless_answers_also_tell_of_something_else():
    """Words out of place with another colour or thing: a policy that strays does not stray from right answers alone."""
    named = Counter()
    for (colour, thing), *answers in judged_pairs():
        for answer in answers:
            if not is_of_the_corpus(answer):
                others = (set(COLOURS) - {colour}) | (set(THINGS) - {thing})
                named[bool(others & set(re.findall(r"\w+", answer)))] += 1
    assert named[True] > 300
    assert named[False] > 300


def test_preferences_of_other_seeds_and_parts_are_others_and_the_same_again():
    def rows(seed, part):
        return list(quickstart.preferences(seed=seed, pairs=20, rankings=5, part=part))

    assert rows(1, 1) == rows(1, 1)
    assert rows(1, 1) != rows(2, 1)
    assert rows(1, 1) != rows(1, 2)
    for row in rows(1, 1)[20:]:
        assert sorted(row["ranks"]) == [1, 2, 3, 4]
        assert len(set(row["responses"])) == 4


def test_the_order_of_preference_follows_bradley_terry_for_every_pair():
    qualities, count = (-1.0, 0.0, 0.25, 1.0), 4000
    draw = random.Random(3)
    wins = Counter()
    for _ in range(count):
        order = preference_order(draw, qualities)
        assert sorted(order) == [0, 1, 2, 3]
        wins.update(combinations(order, 2))
    for i, j in combinations(range(4), 2):
        expected = 1 / (1 + math.exp(-quickstart.SHARPNESS * (qualities[i] - qualities[j])))
        assert wins[i, j] / count == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


def test_a_ranking_is_of_the_answers_to_its_own_prompt():
    """Of four answers, the one that is right and kind comes first more often than any that is wrong."""
    first = Counter()
    for row in quickstart.preferences(seed=4, pairs=0, rankings=600):
        qualities = [quality(response, *asked(row["prompt"])) for response in row["responses"]]
        if max(qualities) >= 1.75 and sorted(qualities)[-2] <= 0:
            first[row["ranks"][qualities.index(max(qualities))] == 1] += 1
    assert first[True] + first[False] > 40
    # Against three of quality 0 at most: 1 / (1 + 3 · exp(-2 · 1.75)) = 0.92, and more against worse ones.
    assert first[True] / (first[True] + first[False]) > 0.85


@pytest.mark.parametrize("preset", ["quickstart", "grpo", "rloo"])
@pytest.mark.parametrize("seed", [0, 4])
def test_every_row_of_the_world_fits_the_model_and_every_word_is_one_token(preset, seed, tmp_path):
    from tasks.data.shapes.records import to_texts
    from tasks.models.from_scratch import make_model
    from tasks.text.tokens import encode_dialogue, load_tokenizer

    config = load_config(preset)
    texts = to_texts([row for source in config.data.texts for row in read_rows(source, seed=seed)])
    make_model(tmp_path, config.model.from_scratch, texts[:1000], seed=seed)
    tokenizer = load_tokenizer(str(tmp_path))
    for word in (*COLOURS, *THINGS):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    lengths = [
        len(encode_dialogue(tokenizer, row.values["prompt"], response)[0])
        for source in config.data.preferences
        for row in read_rows(source, seed=seed)
        for response in row.values.get("responses") or (row.values["chosen"], row.values["rejected"])
    ]
    assert max(lengths) <= config.model.from_scratch.context_length


@pytest.mark.parametrize("preset", ["quickstart", "grpo", "rloo"])
def test_the_presets_on_this_world_show_the_share_of_right_answers(preset):
    held_out = load_config(preset).evaluation.held_out_rewards
    functions = {name: reward.function for name, reward in held_out.items()}
    assert functions == {name: f"flows.presets.quickstart:{name}" for name in ("true_quality", "right_answer")}
