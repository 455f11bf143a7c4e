"""A small world for the quickstart: a grammar that writes text, a known quality, and a labeller that prefers by it.

Visitors ask where something is; whoever answers may have listened or not, and be kind, curt or rude, brief or long.
``quality`` says how good an answer is to what was asked. The pipeline never sees it: it sees the labeller's choices, which
follow the Bradley–Terry law over it, and only the evaluation measures it, as a reward held out of training.
"""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

# No two share a word, so that each word of an answer shows whether it tells of what was asked for.
OBJECTS = (
    ("red", "lamp"),
    ("blue", "clock"),
    ("golden", "map"),
    ("silver", "ring"),
    ("old", "book"),
    ("small", "cup"),
    ("green", "coat"),
    ("black", "key"),
)
PLACES = ("on the shelf", "under the table", "by the door", "near the window", "in the cellar", "behind the curtain")
OPENINGS = (
    "where is the",
    "can you find the",
    "have you seen the",
    "i am looking for the",
    "please show me the",
    "i have lost the",
    "who has the",
    "do you know of the",
)
KIND = ("thank you for asking.", "i am glad to help.", "have a lovely day.", "please take your time.")
CURT = ("that is all.", "look for yourself.", "it was there before.", "ask again later.")
RUDE = ("go away now.", "stop bothering me.", "what a silly question.", "nobody wants you here.")
MAX_SENTENCES = 4
LONG_ENOUGH = 3
WORST = -2.0

# Share of the answers, in the corpus and before the labeller, that tell of something else than was asked for.
INATTENTIVE = 0.4
# Share of the answers before the labeller which are not of the corpus's kind.
CARELESS = 0.2
# Share of the answers before the labeller that go on as the one before does, so that all the difference may be what they
# tell of: a reward model that sees it only among other differences hardly learns it.
SAME_ENDING = 0.7
# The difference of quality at which the labeller prefers the better answer three times out of four is ln 3 / SHARPNESS.
SHARPNESS = 2.0


def a_prompt(draw: random.Random) -> dict[str, Any]:
    colour, thing = draw.choice(OBJECTS)
    return {"prompt": f"visitor: {draw.choice(OPENINGS)} {colour} {thing}?\nguide:", "colour": colour, "thing": thing}


def an_ending(draw: random.Random) -> str:
    """All of an answer but what it tells of: where that is, and then up to three sentences, all tones as common."""
    tones = [draw.choice(draw.choice((KIND, CURT, RUDE))) for _ in range(draw.randint(0, MAX_SENTENCES - 1))]
    return " ".join([f"is {draw.choice(PLACES)}.", *tones])


def an_answer(draw: random.Random, colour: str, thing: str, ending: str) -> str:
    """An answer as the corpus has them: mostly of what was asked for, else of something else."""
    if draw.random() < INATTENTIVE:
        colour, thing = draw.choice([other for other in OBJECTS if other != (colour, thing)])
    return f" the {colour} {thing} {ending}"


def carelessly(draw: random.Random, answer: str) -> str:
    """An answer with some of its words lost, out of place or said again: what a policy may stray to, and none in the corpus.

    A reward model that has never seen such text scores it at random, and PPO finds where it scores too high.
    """
    words = answer.split()
    start = draw.randrange(len(words))
    some = words[start : start + draw.randint(1, 6)]
    kind = draw.randrange(3)
    if kind == 0:
        words[start : start + len(some)] = []
    elif kind == 1:
        words[start:start] = some * draw.randint(1, 2)
    else:
        words[start : start + len(some)] = draw.sample(some, len(some))
    return " " + " ".join(words or some)


def sentences_of(response: str) -> list[str]:
    return [sentence.strip() + "." for sentence in response.split(".") if sentence.strip()]


def is_right(response: str, colour: str, thing: str) -> bool:
    """Whether the first sentence says where the thing is that was asked for."""
    first = sentences_of(response)[:1]
    return any(first == [f"the {colour} {thing} is {place}."] for place in PLACES)


def quality(response: str, colour: str, thing: str) -> float:
    """How good an answer is to the question where the thing of that colour is: right, kind, and short."""
    sentences = sentences_of(response)
    tones = sentences[1:]
    score = 1.0 if is_right(response, colour, thing) else -1.0
    score += 0.75 * sum(tone in KIND for tone in tones[: LONG_ENOUGH - 1])
    score -= 1.0 * sum(tone in RUDE for tone in tones)
    # What the grammar does not know, and every sentence too many, makes an answer worse.
    score -= 1.0 * sum(tone not in (*KIND, *CURT, *RUDE) for tone in tones)
    score -= 0.75 * max(0, len(sentences) - LONG_ENOUGH)
    return max(score, WORST)


def true_quality(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """The quality of each response to its prompt, whose colour and thing the rows name, as a reward for evaluation."""
    del prompts
    return [quality(response, row["colour"], row["thing"]) for response, row in zip(responses, rows, strict=True)]


def right_answer(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """1 where a response tells of what its prompt asks for, else 0: its mean is the share of right answers."""
    del prompts
    return [
        float(is_right(response, row["colour"], row["thing"])) for response, row in zip(responses, rows, strict=True)
    ]


def texts(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """The corpus: prompts with answers."""
    draw = random.Random(f"texts {seed}")
    for _ in range(count):
        row = a_prompt(draw)
        yield {"prompt": row["prompt"], "response": an_answer(draw, row["colour"], row["thing"], an_ending(draw))}


def prompts(seed: int, count: int, part: str = "train") -> Iterator[dict[str, Any]]:
    """Prompts, with what they ask for as further columns."""
    draw = random.Random(f"prompts {part} {seed}")
    for _ in range(count):
        yield a_prompt(draw)


def preferences(seed: int, pairs: int, rankings: int, part: int = 1) -> Iterator[dict[str, Any]]:
    """The labeller's choices between answers, some of them careless: pairs, and rankings of 4."""
    draw = random.Random(f"preferences {part} {seed}")
    for number in range(pairs + rankings):
        row = a_prompt(draw)
        answers = distinct_answers(draw, row["colour"], row["thing"], 2 if number < pairs else 4)
        order = preference_order(draw, [quality(answer, row["colour"], row["thing"]) for answer in answers])
        if number < pairs:
            yield {"prompt": row["prompt"], "chosen": answers[order[0]], "rejected": answers[order[1]]}
        else:
            ranks = [order.index(position) + 1 for position in range(len(answers))]
            yield {"prompt": row["prompt"], "responses": answers, "ranks": ranks}


def distinct_answers(draw: random.Random, colour: str, thing: str, count: int) -> list[str]:
    """Answers to one prompt, some of them careless, some with the ending of the one before."""
    answers: list[str] = []
    ending = an_ending(draw)
    while len(answers) < count:
        if draw.random() >= SAME_ENDING:
            ending = an_ending(draw)
        answer = an_answer(draw, colour, thing, ending)
        if draw.random() < CARELESS:
            answer = carelessly(draw, answer)
        if answer not in answers:
            answers.append(answer)
    return answers


def preference_order(draw: random.Random, qualities: Sequence[float]) -> list[int]:
    """Positions from best to worst, drawn so that every pair follows Bradley–Terry: quality plus Gumbel noise, sorted.

    (Plackett 1975; that the order of such sums follows his law is Yellott 1977.)
    """
    noisy = [SHARPNESS * value - math.log(-math.log(draw.random())) for value in qualities]
    return sorted(range(len(qualities)), key=lambda position: -noisy[position])
