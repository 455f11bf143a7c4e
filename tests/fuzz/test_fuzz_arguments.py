"""Command lines that nobody means: each ends with exit code 2 and one sentence that says which word of it is wrong, and
nothing is executed or left behind."""

import os
import re
from collections import Counter
from unittest import mock

import pytest
from fake_runs import document, finished_run, write_config
from typer.testing import CliRunner

from flows.cli import main as cli
from flows.text import printable

LONG = "x" * 300
ODD = ("", " ", LONG, "x/" * 3000, "~nosuchuser/x", "a\0b", "a\udc80b", "a\nb", "\x1b[2J", "\u202e", "%s{0}", "*", "..")
NO_FILES = ("/dev/zero", "/dev/null/x", "/proc/self/mem", "pipe", "loop", "nowhere/x", "text/x")
NO_NUMBERS = ("nan", "inf", "", " ", "x", "1.5", "-1", "0", "9" * 5000, "1e3", "0x1", "\0", "1\n2", "1,2", "--1")
NOT_THERE = (*NO_NUMBERS, "99", "9" * 40)
NO_SETTINGS = (*ODD, "seed", "=3", "seed=[", "nothing=1", "ppo.cliprang=1", "ppo=3", "seed=" + "9" * 5000, "a..b=1")
NO_CRONS = (
    *("", "x", "* * *", "60 * * * *", "* 25 * * *", "0 0 30 2 *", "*/0 * * * *", "-1 * * * *", "@never", "a\0b"),
    *("0 0 2 * * *", "* * * * * * *", "9" * 400, "0 2 * *\n", "\udc80 * * * *", "R R * * *"),
)
NO_CONDITIONS = ("score>", "nothing>1", "score>'a'", "prompt<1", "sort:nothing", "/(/", '"open', "-", "a:", "x" * 3000)
NO_HOMES = ("", "~nosuchuser/x", "a\0b", "/dev/zero", "/dev/null/x", "pipe", "text", "text/x", "loop", "to-text/x")
NO_RUNS = (*ODD, *NO_FILES, "text", "empty", "full")
NO_NAMES = (*ODD, "-", "/dev/zero", "nowhere/x", "~", ".", "ä")
NO_CONFIGS = (*ODD, *NO_FILES, "text", "empty", "utf-16.yaml", "nul.yaml", "empty.yaml")
NO_TARGETS = ("", "~nosuchuser/x", "a\0b", "x" * 300, "x/" * 3000, "/dev/zero", "/dev/null/x", "pipe", "text/x", "full")
NO_NEW_FILES = (*NO_TARGETS, *NO_FILES, "empty", "..")
NO_DATA = ("~nosuchuser/x", "a\0b", *NO_FILES, "text", "empty")
NO_MODELS = ("", "~nosuchuser/x", "a\0b", "/dev/zero", "/dev/null/x", "pipe", "empty", "text", "..", "./x", "x/" * 3000)
SURPLUS = ("--nothing", "-x", "--json=3", "--" + LONG, "--a\udc80", "--\x1b[2J", "--home")

# Each operand: the command line with {} in its place, the values that it cannot have, and what a sentence may call it.
ROLLOUT = "r1.i1.s0.aa.0"
OPERANDS = (
    *(
        (f"{command} -- {{}}", NO_RUNS, "RUN")
        for command in ("status", "rerun", "rollouts", "replay", "verify", "clean")
    ),
    *(
        (f"--home={{}} {command}", NO_HOMES, "--home")
        for command in ("list", "status", "schedule", "up", "down", "serve")
    ),
    ("init -- {}", NO_NEW_FILES, "FILE"),
    ("run -- {}", NO_CONFIGS, "CONFIG"),
    ("run config.yaml --name={}", NO_NAMES, "--name"),
    ("run config.yaml --set={}", NO_SETTINGS, "--set"),
    ("rerun fake --set={}", NO_SETTINGS, "--set"),
    ("rerun fake --from={}", ODD, "--from"),
    ("rerun fake --round={}", NOT_THERE, "--round"),
    ("rerun fake --from=score_rollouts --round={}", NOT_THERE, "round"),
    ("rerun fake --from=score_rollouts --iteration={}", NOT_THERE, "--iteration"),
    ("rollouts fake --round={}", NOT_THERE, "round"),
    ("rollouts fake --iteration={}", NOT_THERE, "iteration"),
    ("rollouts fake --top={}", NO_NUMBERS, "--top"),
    ("rollouts fake --sort={}", ODD, "--sort"),
    ("rollouts fake --where={}", NO_CONDITIONS, "--where"),
    ("rollouts fake --format={}", ODD, "--format"),
    ("rollouts fake --attempt={}", ODD, "--attempt"),
    ("show --run=fake -- {}", (*ODD, "r1", "r1.i1.s0.zz.0", "r9.i1.s0.aa.0", f"r{'9' * 5000}.i1.x"), "rollout"),
    (f"show {ROLLOUT} --run={{}}", NO_RUNS, "RUN"),
    (f"show {ROLLOUT} --run=fake --attempt={{}}", ODD, "--attempt"),
    ("export fake --to={}", NO_TARGETS, "--to"),
    ("export --to=new -- {}", NO_RUNS, "RUN"),
    ("export fake --to=new --what={}", ODD, "--what"),
    ("export fake --to=new --round={}", NOT_THERE, "--round"),
    ("replay fake --round={}", NOT_THERE, "round"),
    ("replay fake --iteration={}", NOT_THERE, "iteration"),
    ("replay fake --device={}", (*ODD, "cuda:", "cuda:x", "cpu:0", "tpu", "CPU"), "--device"),
    ("run config.yaml --until={}", ODD, "--until"),
    ("sample hello --run={}", NO_RUNS[::4], "RUN"),
    ("sample hello --model={}", NO_MODELS, "--model"),
    ("sample --run=fake --prompts={}", NO_DATA, "--prompts"),
    ("sample hello --run=fake --round={}", tuple(n for n in NOT_THERE if n != "0"), "--round"),
    ("sample hello --run=fake --iteration={}", NOT_THERE, "--iteration"),
    ("sample hello --run=fake --samples={}", NO_NUMBERS, "--samples"),
    ("sample hello --run=fake --max-new-tokens={}", NO_NUMBERS, "--max-new-tokens"),
    ("sample hello --run=fake --temperature={}", ("nan", "inf", "", "x", "-1", "0", "1,2"), "--temperature"),
    ("sample hello --run=fake --seed={}", ("nan", "", "x", "-1", "1.5"), "--seed"),
    ("score --run=fake -- {}", NO_DATA, "FILE"),
    ("score --prompt=a --response=b --run={}", NO_RUNS[::4], "RUN"),
    ("score --prompt=a --response=b --model={}", NO_MODELS, "--model"),
    ("score --prompt=a --response=b --run=fake --round={}", NOT_THERE, "--round"),
    ("evaluate -- {}", NO_RUNS[::4], "RUN"),
    ("evaluate fake --model={}", NO_MODELS, "--model"),
    ("evaluate fake --round={}", NOT_THERE, "--round"),
    ("evaluate fake --iteration={}", NOT_THERE, "--iteration"),
    ("schedule --cron=@daily -- {}", NO_CONFIGS, "CONFIG"),
    ("schedule config.yaml --cron={}", NO_CRONS, "--cron"),
    ("schedule config.yaml --cron=@daily --timezone={}", (*ODD, "Mars", "/etc/localtime", "Europe"), "--timezone"),
    ("schedule config.yaml --cron=@daily --name={}", NO_NAMES, "--name"),
    ("schedule config.yaml --cron=@daily --set={}", NO_SETTINGS, "--set"),
    ("schedule --remove={}", NO_NAMES, "--remove"),
    *(
        (f"{name} {{}}", SURPLUS, "")
        for name in ("init", "list", "status", "run", "export", "show", "up", "down", "serve")
    ),
    ("{}", ("nothing", LONG, "a\udc80", "\x1b[2J", "--nothing", "--version=3", "-x", "*"), ""),
)


def command_lines():
    """Words of each command line, the value that is wrong in it, and what a sentence may call it."""
    for template, values, called in OPERANDS:
        for value in values:
            yield [word.replace("{}", value) for word in template.split()], value, called


def files_below(*roots):
    """What is there and when it was written; the lock of a run is taken also for what is then refused."""
    paths = [path for root in roots for path in root.rglob("*") if path.name != "lock"]
    return {str(path): None if path.is_dir() else path.lstat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with one finished run."""
    home = tmp_path_factory.mktemp("home")
    finished_run(home, "fake", document(home))
    return home


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with what the values name."""
    write_config(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-text").symlink_to("text")
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "text").write_text("word")
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "nul.yaml").write_bytes(b"seed: 1\0")
    (tmp_path / "utf-16.yaml").write_text("seed: 1", encoding="utf-16")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(words, value, called, *, home):
    """One word for what became of a command line, and what was said."""
    at = [] if called == "--home" else ["--home", str(home)]
    # rounds serve tells its children of the home by the environment.
    with mock.patch.dict(os.environ):
        result = CliRunner().invoke(cli.app, [*at, *words])
    if result.exit_code == 0:
        return "accepted", result.stdout
    if result.exit_code != 2 or not isinstance(result.exception, SystemExit):
        return "traceback", f"exit {result.exit_code}, {result.exception!r}"
    *usage, sentence = result.stderr.splitlines() or [""]
    if usage and re.fullmatch(r"error: .+: \d+ mistakes", usage[0]):
        # All at once, a numbered line each.
        is_list = all(re.match(r"  \d+\. \S", line) for line in (*usage[1:], sentence))
        return ("clear" if is_list and not result.stdout else "unclear"), result.output
    # What cannot be parsed is told by the library, below two lines on usage and an empty one.
    is_one = not usage or (len(usage) == 3 and usage[0].startswith("Usage: ") and usage[2] == "")
    names = [called, printable(value[:20]), *value.split("=")[:1], *value.split(".")[:1]]
    is_told = sentence.lower().startswith("error: ") and any(name.strip() and name in sentence for name in names)
    return ("clear" if is_one and is_told and not result.stdout else "unclear"), result.output


@pytest.mark.timeout(120)
def test_a_command_line_that_cannot_be_is_refused_in_one_sentence_and_leaves_nothing(home, here):
    counts, wrong = Counter(), []
    before = files_below(home, here)
    for words, value, called in command_lines():
        word, said = outcome(words, value, called, home=home)
        if (after := files_below(home, here)) != before:
            word, said, before = "executed", sorted({*after.items()} ^ {*before.items()}), after
        counts[word] += 1
        if word != "clear":
            wrong.append(f"{word}: {' '.join(words)!a:.120}: {said!r:.300}")
    print(dict(counts))
    assert not wrong, "\n".join(wrong)
    assert counts["clear"] > 800
