"""Configurations that nobody would write on purpose: each is refused in one sentence, or means exactly what it says."""

import random
from collections import Counter
from pathlib import Path

import pytest
import yaml

from flows.config.reading import dump, load_config
from tasks.errors import UserError

TINY = Path(__file__).parents[1] / "flows" / "tiny.yaml"
ODD = (
    *(None, True, False, "", "3", "three", "ä" * 300, "\u202e", [], {}, [[]], {"a": {"b": {}}}, [None]),
    *(0, -1, 1.5, 2**63, 10**400, 1e300, -0.5, float("nan"), float("inf"), -float("inf")),
)
REFUSED_TEXTS = {
    "a key twice": "seed: 1\nseed: 2\n",
    "a tag of Python": "seed: !!python/object/apply:os.getcwd []\n",
    "sexagesimal": "seed: 1:30\n",
    "a date": "seed: 2024-01-01\n",
    "a date that is none": "seed: 2024-13-45\n",
    "a number of 5,000 digits": f"seed: {'9' * 5000}\n",
    "yes for a number": "rounds: yes\n",
    "deep nesting": "model: " + "[" * 5000 + "]" * 5000 + "\n",
    "an alias to itself": "model: &a [*a]\n",
    "a bomb": "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12)),
    "no end": "model: {policy: x\n",
    "a tab": "model:\n\tpolicy: x\n",
    "a list": "- 1\n- 2\n",
    "one word": "word\n",
    "nothing": "",
    "a control character": "seed: \x07\n",
    "a surrogate": 'tracking: {experiment: "\\ud800"}\n',
    "a million rounds": "rounds: 1000000\n",
}
NUM_MUTATIONS = 300


def paths(node, path=()):
    """Every place in a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


def same(written, taken):
    """Whether a plain value is what was written: equal, and no truth value for a number or number for a text."""
    if isinstance(written, int | float) and not isinstance(written, bool):
        return isinstance(taken, int | float) and not isinstance(taken, bool) and written == taken
    return type(written) is type(taken) and written == taken


def outcome(path, *, expects=None, overrides=()):
    """One word for what became of a configuration file, and the sentence."""
    try:
        config = load_config(str(path), overrides)
    except UserError as error:
        sentence = str(error)
        return (
            "clear" if "\n" not in sentence and (path.name in sentence or "--set" in sentence) else "unclear"
        ), sentence
    except Exception as error:
        return "traceback", repr(error)
    if expects is None:
        return "accepted", "nothing of it could mean anything"
    place, value = expects
    try:
        taken = at(dump(config), place)
    except (LookupError, TypeError):
        return "unfit", "what was written is not in what was taken"
    # A section without settings has the defaults, and a source may be its path alone.
    by_rule = isinstance(taken, dict) and (value == {} or (isinstance(value, str) and taken.get("path") == value))
    return ("as written" if same(value, taken) or by_rule else "accepted"), f"{value!r:.60} became {taken!r:.60}"


@pytest.mark.timeout(120)
def test_a_mutated_setting_is_refused_in_one_sentence_or_means_what_was_written(tmp_path):
    rng = random.Random(13)
    counts, wrong = Counter(), []
    for number in range(NUM_MUTATIONS):
        document = yaml.safe_load(TINY.read_text())
        place = rng.choice(list(paths(document)))
        value = rng.choice(ODD)
        at(document, place[:-1])[place[-1]] = value
        path = tmp_path / f"m{number}.yaml"
        path.write_text(yaml.safe_dump(document, allow_unicode=True))
        word, sentence = outcome(path, expects=(place, value))
        counts[word] += 1
        if word not in ("clear", "as written"):
            wrong.append(f"{word}: {'.'.join(map(str, place))}={value!r:.60}: {sentence:.200}")
    print(dict(counts))
    assert not wrong, "\n".join(wrong)
    assert counts["clear"] > NUM_MUTATIONS // 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", REFUSED_TEXTS)
def test_a_text_that_cannot_be_a_configuration_is_refused_in_one_sentence(kind, tmp_path):
    path = tmp_path / "odd.yaml"
    rest = "" if kind in ("a list", "one word", "nothing") else TINY.read_text()
    key = REFUSED_TEXTS[kind].partition(":")[0]
    kept = [line for line in rest.splitlines() if not line.startswith(f"{key}:")]
    path.write_text(REFUSED_TEXTS[kind] + "\n".join(kept))
    assert outcome(path)[0] == "clear", outcome(path)[1]


REFUSED_OVERRIDES = (
    *("", "=", "=3", "seed", "seed=", "seed=yes", "seed=1:30", "seed=[", "seed={", "seed=2024-01-01", "seed=-1"),
    *("seed.x=1", "nothing=1", "model.nothing=1", "ppo=3", "ppo.epochs.deep=1", "data.prompts.9.path=x", "a..b=1"),
    *(".seed=1", "seed=1e999", "seed=.nan", "rounds=1000000", "rewards={}", "rewards=null", "data.prompts.-1=x"),
    *("seed=" + "9" * 5000, "seed=" + "[" * 3000, "ä=1", "\ud800=1", "seed=!!python/name:os.system", "seed=*a"),
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("override", REFUSED_OVERRIDES, ids=range(len(REFUSED_OVERRIDES)))
def test_an_override_that_cannot_be_is_refused_in_one_sentence(override):
    word, sentence = outcome(TINY, overrides=[override])
    assert word == "clear", sentence[:300]
