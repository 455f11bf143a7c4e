"""What the READMEs tell people to type: every command, option, setting, configuration, example, link and path is tried."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import get_args, get_origin, get_type_hints

import documents
import pytest
import recipes
import typer
from conftest import TINY
from documents import ROOT, blocks, read, words_in_code
from pydantic import BaseModel

from flows.cli.app import home_first
from flows.cli.main import app
from flows.config import PRESETS, RunConfig, checked, load_config, with_overrides
from flows.config.reading import read_document
from tasks.data import TOKEN_IDS, WITH_SPECIAL_TOKENS
from tasks.errors import ConfigError
from tasks.stages import STAGES
from tasks.yaml_text import read_yaml

DOCUMENTS = documents.names()
# Its blocks of Python and YAML are edits of the recipes; test_recipes.py makes and tries them.
WITH_EXAMPLES = [name for name in DOCUMENTS if name != recipes.DOCUMENT]
# It names settings that are gone.
OF_TODAY = [name for name in DOCUMENTS if name != "CHANGELOG.md"]
# What typer refuses arguments by is no name of its own.
USAGE_ERROR = typer.BadParameter.__base__
COMMANDS = typer.main.get_command(app).commands
# The least that a run needs, with which a part of a configuration is a whole one.
(LEAST,) = [read_yaml(text) for text in blocks("README.md", "yaml")]
PATH = re.compile(r"(flows|infra|ppo_core|tasks|tests|\.ci)/\S*")
SETTING = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)(=.*|: .*)?")
FILES = (".py", ".json", ".yaml", ".md")


def test_every_document_is_read():
    assert {"README.md", "CONTRIBUTING.md", "tasks/metrics/README.md", "infra/schedules.md"} <= {*DOCUMENTS}
    num_commands = {name: len(documents.commands(name)) for name in DOCUMENTS}
    assert (
        min(num_commands[name] for name in ("README.md", "CONTRIBUTING.md", "flows/README.md", "tests/README.md")) > 5
    )
    # An odd one would turn words and code around.
    assert [name for name in DOCUMENTS if documents.prose(name).count("`") % 2] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_or_a_heading(name):
    for link in documents.links(name):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in documents.anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name):
    words = [word for text in words_in_code(name) for word in text.split()]
    words += [word for language in ("", "bash") for text in blocks(name, language) for word in text.split()]
    for word in words:
        if PATH.fullmatch(word) or re.fullmatch(r"[\w/]+\.py", word):
            is_made = name == recipes.DOCUMENT and word in recipes.new_files()
            assert is_made or (ROOT / word).exists() or ((ROOT / name).parent / word).exists(), word


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_that_is_shown_is_one(name):
    for words in documents.commands(name):
        if words[0] == "rounds":
            require_command(words[1:])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_that_is_mentioned_is_one(name):
    for text in words_in_code(name):
        words = text.removeprefix("rounds ").split()
        if text.startswith("rounds ") and re.match("[a-z]", words[0]):
            found, _ = command_of(words)
            known = {option for parameter in found.params for option in parameter.opts}
            assert {*re.findall(r"--[a-z-]+", text)} <= {*known, "--help", "--home"}, text
        for setting in re.findall(r"--set ([a-z][\w.]*)=", text):
            assert is_setting(setting), text


def command_of(words):
    """A command, which may be one of a group, and the words behind its name."""
    found, rest = COMMANDS[words[0]], words[1:]
    if rest and rest[0] in getattr(found, "commands", {}):
        return found.commands[rest[0]], rest[1:]
    return found, rest


def require_command(words):
    """Parse a command of ours as if it were given, and check what it names and sets."""
    words = home_first(words)
    if words[0] == "--home":
        words = words[2:]
    found, rest = command_of(words)
    given = found.make_context(words[0], rest).params
    overrides = given.get("set_") or []
    if words[0] in ("run", "schedule") and (config := given["config"]) is not None:
        is_preset = (PRESETS / f"{config}.yaml").exists()
        assert is_preset or config.endswith(".yaml"), words
        checked(with_overrides(read_document(config) if is_preset else LEAST, overrides), where=config)
    elif overrides:
        load_config(str(TINY), overrides)
    if given.get("from_") is not None:
        assert given["from_"] in STAGES


@pytest.mark.parametrize("words", ["status --attempt 1", "run nothing", "rerun --from score", "rollouts --top many"])
def test_a_command_that_is_none_is_noticed(words):
    with pytest.raises((AssertionError, USAGE_ERROR)):
        require_command(words.split())


def test_a_setting_that_a_command_could_not_set_is_noticed():
    with pytest.raises(ConfigError, match=r"advantages\.lamda"):
        require_command(["run", "quickstart", "--set", "advantages.lamda=1"])


def is_setting(path):
    """Whether a configuration has a field of this name. The names of rewards are the user's."""

    def leads_on(hint, names):
        if not names:
            return True
        if isinstance(hint, type) and (issubclass(hint, BaseModel) or is_dataclass(hint)):
            hints = get_type_hints(hint)
            return names[0] in hints and leads_on(hints[names[0]], names[1:])
        if get_origin(hint) is Mapping:
            return leads_on(get_args(hint)[1], names[1:])
        return any(leads_on(part, names) for part in get_args(hint))

    return leads_on(RunConfig, path.split("."))


@pytest.mark.parametrize("name", OF_TODAY)
def test_every_setting_that_is_mentioned_is_one(name):
    for text in words_in_code(name):
        found = SETTING.fullmatch(text)
        if found and not found[1].endswith(FILES) and found[1].partition(".")[0] in RunConfig.model_fields:
            assert is_setting(found[1]), text


@pytest.mark.parametrize(
    "path", ["advantages.lamda", "ppo.lam", "model.lora.rang", "rewards.mine.wait", "data.too_long"]
)
def test_what_is_no_setting_is_noticed(path):
    assert not is_setting(path)
    assert is_setting("model.lora.rank")
    assert is_setting("rewards.mine.weight")


@pytest.mark.parametrize("name", [name for name in WITH_EXAMPLES if blocks(name, "yaml")])
def test_every_configuration_that_is_shown_is_one(name):
    for text in blocks(name, "yaml"):
        document = read_yaml(text)
        checked(document if "model" in document else {**LEAST, **document}, where=name)


def output_of(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in WITH_EXAMPLES if blocks(name, "python")])
def test_every_example_in_python_runs(name):
    for code in blocks(name, "python"):
        if "flows.open" not in code:
            output_of(code)


def test_the_example_of_looking_at_a_run_runs(home, tiny, monkeypatch):
    (code,) = [code for code in blocks("flows/README.md", "python") if "flows.open" in code]
    monkeypatch.setenv("ROUNDS_HOME", str(home.path))
    assert '"quickstart"' in code
    output_of(code.replace('"quickstart"', repr(tiny)))


def test_the_loop_of_ones_own_learns_as_much_as_is_said():
    (code,) = [text for text in blocks("ppo_core/README.md", "python") if "ppo_update" in text]
    scores = [float(score) for score in re.findall(r"score (\S+),", output_of(code))]
    first, last = re.search(r"rises from (\S+) to about (\S+):", " ".join(read("ppo_core/README.md").split())).groups()
    assert scores[0] == pytest.approx(float(first), abs=0.02)
    assert scores[-1] == pytest.approx(float(last), abs=0.15)


def test_the_reward_functions_that_are_shown_score_responses():
    functions = {}
    for code in blocks("tasks/README.md", "python"):
        exec(code, functions)
    assert functions["short"](["p", "q"], ["ab", ""], [{}, {}]) == [-0.02, 0.0]
    more = {WITH_SPECIAL_TOKENS: ["<think>so</s>", "no</s>"]}
    assert functions["thinks_first"](["p", "q"], ["so", "no"], [{}, {}], **more) == [1.0, 0.0]
    assert {f"{WITH_SPECIAL_TOKENS}: list[str]", f"{TOKEN_IDS}: list[list[int]]"} <= {*words_in_code("tasks/README.md")}
