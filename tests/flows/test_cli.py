"""The command line on runs whose outputs were made by hand; whole runs are in ``test_run``."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_runs import ILLNESS, document, finished_run, write_config
from typer.testing import CliRunner

from flows import launch
from flows.cli import main as cli
from flows.cli.app import home_first
from flows.config.commented import commented
from flows.config.mistakes import fields_of
from flows.config.reading import PRESETS, checked, load_config
from flows.config.run_config import RunConfig
from flows.outcomes import reported
from flows.outcomes.outputs import latest_variants
from flows.outcomes.status import reports_of
from flows.plan.plan import make_plan
from flows.text import escape_what_streams_lack
from flows.waiting import Waiting
from tasks.contract.failures import StageError
from tasks.yaml_text import read_yaml

ROUNDS = str(Path(sys.executable).with_name("rounds"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with one finished run, not to be changed."""
    home = tmp_path_factory.mktemp("home")
    finished_run(home, "fake", document(home))
    return home


@pytest.fixture
def rounds(home):
    def call(*args, code=0, at=home):
        result = CliRunner().invoke(cli.app, ["--home", str(at), *map(str, args)])
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    return call


def error_of(result):
    """What went to standard error: one line."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_help_names_every_command_and_is_quick():
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([ROUNDS, "--help"], capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - began)
    for name in ("init", "run", "list", "status", "rerun", "rollouts", "show", "export", "up", "down"):
        assert re.search(rf"^  {name} ", done.stdout, re.M), name
    assert min(taken) < 0.5


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("flows.cli.main", {"rich", "torch", "prefect", "mlflow", "pandas", "pyarrow", "yaml", "pydantic"}),
        ("flows.terminal.views.runs", {"torch", "prefect", "mlflow", "pandas", "transformers"}),
        ("flows.launch", {"torch", "prefect", "mlflow", "pandas", "transformers"}),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(module, heavy):
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version(rounds):
    assert re.fullmatch(r"rounds \d+\.\d+\.\d+\S*\n", rounds("--version").stdout)


def test_home_may_be_named_behind_the_command(home):
    assert CliRunner().invoke(cli.app, ["list", "--home", str(home)]).stdout.count("fake") == 1
    assert home_first(["run", "x", "--home=h", "--", "--home"]) == ["--home=h", "run", "x", "--", "--home"]


def test_init_writes_a_file_and_never_over_one(rounds, tmp_path):
    path = tmp_path / "mine.yaml"
    rounds("init", path)
    assert path.read_text() == commented()
    path.write_text("mine")
    assert "exists already; name another file" in error_of(rounds("init", path, code=2))
    assert path.read_text() == "mine"
    assert "cannot be written" in error_of(rounds("init", tmp_path / "no" / "where.yaml", code=2))


def test_what_init_writes_loads_and_says_the_defaults(tmp_path):
    config = checked(read_yaml(commented()), where="init")
    required = {
        "model": {"policy": config.model.policy},
        "data": {name: [{"path": getattr(config.data, name)[0].path}] for name in ("prompts", "preferences")},
        "reward_model": {},
        "rewards": {"preference": {"model": "trained"}},
        "rollouts": {"sampling": {"max_new_tokens": 64}},
    }
    assert config == RunConfig.model_validate(required)


@pytest.mark.parametrize("section", ["model.lora", "warm_up"])
def test_a_section_that_init_switched_off_is_switched_on_by_its_marks_alone(section):
    *_, name = section.split(".")
    lines = commented().splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip() == f"# {name}:")
    indent = lines[first].index("#")
    for i in range(first, len(lines)):
        if i > first and not lines[i].startswith(f"{' ' * indent}#   "):
            break
        lines[i] = " " * indent + lines[i][indent + 2 :]
    document = read_yaml("\n".join(lines))
    document["data"]["texts"] = [{"path": "texts.jsonl"}]
    config, default = (
        checked(document, where="init").model_dump(),
        checked(read_yaml(commented()), where="").model_dump(),
    )
    for part in section.split("."):
        config, default = config[part], default[part]
    assert config
    assert default is None


def test_what_init_writes_has_every_field_of_the_configuration():
    written = set(re.findall(r"^\s*(?:# )?\s*(?:- )?(\w+):", commented(), re.M))
    assert every_field(RunConfig) - written == set()


def test_what_init_writes_says_of_a_field_what_its_docstring_says_and_its_choices():
    lines = " ".join(line.strip().removeprefix("# ") for line in commented().splitlines())
    # A model, a dataclass of ppo_core, and choices that the docstring does not name.
    assert "Every random draw of the run is a function of it. seed: 0" in lines
    assert "null does not clip." in lines
    assert "The critic's gradient is scaled down to this norm; .inf never scales. critic_max_grad_norm: 1.0" in lines
    assert "warn says it and goes on. One of stop, warn. action: stop" in lines


def every_field(node):
    """Names of all fields of a configuration class and of those below it, but those that a run fills in itself."""
    internal = {"code"} | ({"trust_remote_code"} if node.__name__ == "WarmUpConfig" else set())
    names = set()
    for name, annotation in fields_of(node).items():
        if name not in internal:
            names |= {name}
            for inner in classes_in(annotation):
                names |= every_field(inner)
    return names


def classes_in(annotation):
    if isinstance(annotation, type) and fields_of(annotation):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in classes_in(inner)]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("ppo.cliprang=0.1", "ppo.cliprang: unknown key; did you mean ppo.cliprange?"),
        ("iteration=3", "iteration: unknown key; did you mean iterations?"),
        ("advantages.gamma=2", "advantages.gamma=2: input should be less than or equal to 1"),
        ("ppo.epochs=0", "epochs=0 must be at least 1"),
        ("ppo.epochs", "--set ppo.epochs: not of the form a.b=value"),
        ("rounds.x=1", "--set rounds.x=1: rounds is no section"),
        ("data.prompts=[gone.jsonl]", "gone.jsonl does not exist"),
        ("model={policy: /gone}", "model.policy: /gone is no directory; correct the path"),
        ("evaluation.held_out_rewards.q.function=nowhere:f", "nowhere:f"),
        (
            "evaluation.held_out_rewards.q.function=flows.presets.quickstart:true_qualit",
            "evaluation.held_out_rewards.q.function: flows.presets.quickstart:true_qualit: ",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(rounds, tmp_path, override, told):
    config = write_config(tmp_path)
    home = tmp_path / "home"
    result = rounds("run", config, "--set", override, at=home, code=2)
    assert told in error_of(result)
    assert not (home / "runs").exists()


def test_a_configuration_that_is_not_there_is_told_with_the_presets(rounds, tmp_path):
    assert "presets are grpo, quickstart, r1_zero, rloo, stories" in error_of(
        rounds("run", tmp_path / "gone.yaml", code=2)
    )


@pytest.mark.parametrize("name", ["a/b", "../up", "-x", ""])
def test_a_run_needs_a_plain_name(rounds, tmp_path, name):
    rounds("run", write_config(tmp_path), f"--name={name}", at=tmp_path / "home", code=2)
    assert not (tmp_path / "up").exists()


def test_a_directory_that_is_no_run_is_refused(rounds, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.txt").write_text("keep")
    told = error_of(rounds("run", write_config(tmp_path), "--name", "mine", at=tmp_path, code=2))
    assert "is not a run: it has no run.json" in told
    assert "is not a run's directory" in error_of(rounds("status", tmp_path, code=2))
    assert "no run of that name" in error_of(rounds("status", "nobody", code=2))
    assert "has no runs yet" in error_of(rounds("status", at=tmp_path / "empty", code=2))


def test_a_run_in_progress_is_left_alone_and_named(rounds, home):
    code = (
        "import sys, pathlib; from flows.runs.workspace import Run\n"
        "with Run(pathlib.Path(sys.argv[1])).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    root = home / "runs" / "fake"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        told = error_of(rounds("rerun", "fake", code=2))
        assert re.search(rf"run fake is in progress in process {other.pid} on .*; wait for it, or stop it first", told)
        assert json.loads(rounds("list", "--json").stdout)[0]["state"] == "running"
        assert "run fake is in progress and needs the server" in error_of(rounds("down", code=2))
    finally:
        other.communicate("")
    assert json.loads(rounds("list", "--json").stdout)[0]["state"] == "finished"


class Executed:
    """Stands in for the execution of a run."""

    def __init__(self, monkeypatch, *, error=None, unreported=(), lost_server=False):
        self.configs, self.generations, self.error = [], [], error
        self.unreported, self.lost_server = list(unreported), lost_server
        monkeypatch.setattr(launch, "execute", self)

    def __call__(self, run, config, plan):
        self.configs.append(config)
        self.generations.append(run.generations)
        if self.error is not None:
            raise self.error
        reports = [found.ref for found in latest_variants(run, "report_round")]
        told = {"unreported": self.unreported, "lost_server": self.lost_server}
        return launch.Outcome(run=run, plan=plan, reports=reports, **told)


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("user", 2, "error in warm_up-r1: no text is left"),
        ("transient", 1, "error in warm_up-r1: no text is left; details are in /log; when it is mended, the same"),
        ("memory", 1, "error in warm_up-r1: no text is left"),
        ("defect", 1, "error in warm_up-r1: no text is left; details are in /log"),
        ("refused", 1, "error in warm_up-r1: no text is left; details are in /log; when it is mended, the same"),
        ("cancelled", 130, "cancelled; nothing that was committed is lost, and the same command continues"),
    ],
)
def test_the_exit_code_says_who_acts(rounds, tmp_path, monkeypatch, kind, code, told):
    Executed(monkeypatch, error=StageError(kind, "no text is left", stage="warm_up-r1", log="/log"))
    result = rounds("run", write_config(tmp_path), at=tmp_path / "home", code=code)
    assert result.stderr.startswith(told)
    assert result.stdout == ""
    # A mistake before anything was committed leaves no run behind.
    assert (tmp_path / "home" / "runs" / "config").exists() == (kind != "user")


def test_a_mistake_in_a_run_with_outputs_keeps_them(rounds, tmp_path, monkeypatch):
    run = finished_run(tmp_path, "config", document(tmp_path))
    Executed(monkeypatch, error=StageError("user", "no", stage="warm_up-r1"))
    rounds("run", write_config(tmp_path), at=tmp_path, code=2)
    assert not run.is_empty()


def test_ctrl_c_is_130_and_a_defect_keeps_its_traceback(rounds, tmp_path, monkeypatch):
    Executed(monkeypatch, error=KeyboardInterrupt())
    rounds("run", write_config(tmp_path), at=tmp_path / "home", code=130)
    Executed(monkeypatch, error=ZeroDivisionError())
    assert isinstance(rounds("run", write_config(tmp_path), at=tmp_path / "home", code=1).exception, ZeroDivisionError)


def test_hostile_text_in_an_error_stays_text(rounds, tmp_path, monkeypatch):
    Executed(monkeypatch, error=StageError("user", "[red]x\x1b[2J\nsecond", stage="s"))
    result = rounds("run", write_config(tmp_path), at=tmp_path / "home", code=2)
    assert result.stderr == "error in s: [red]x\\x1b[2J⏎second\n"


def test_a_run_ends_with_its_table_and_where_to_look_next(rounds, home, monkeypatch):
    Executed(monkeypatch)
    result = rounds("rerun", "fake")
    assert re.search(r"^round 2 +2\.000 +0\.125 +1\.00 ", result.stdout, re.M)
    for text in (
        # With the home that was given, or the command would look in another one.
        f"rounds --home {home} status fake",
        f"rounds --home {home} rollouts fake",
        f"rounds --home {home} export fake",
        f"rounds --home {home} mlflow",
        f"rounds --home {home} ui fake",
    ):
        assert text in result.stdout
    found = json.loads(rounds("rerun", "fake", "--json").stdout)
    assert [summary["round"] for summary in found["rounds"]] == [1, 2]
    assert found["unreported"] == []


def test_a_gain_is_never_printed_without_the_warnings_that_stand_against_it(rounds, monkeypatch, tmp_path):
    Executed(monkeypatch)
    table, below = rounds("rerun", "fake").stdout.split("\n1 warning\n")
    assert "1.00" in table
    assert below.startswith(f"  {ILLNESS}\n")
    assert [warning["sentence"] for warning in json.loads(rounds("rerun", "fake", "--json").stdout)["warnings"]] == [
        ILLNESS
    ]
    assert re.search(r"finished .* 2\.000 +1\.00 +1$", rounds("list").stdout, re.M)
    assert json.loads(rounds("list", "--json").stdout)[0]["warnings"] == 1
    # Status looks at what is committed, and needs no report.
    table, below = rounds("status", "fake").stdout.split("\n1 warning\n")
    assert "1.00" in table
    assert below.startswith(f"  {ILLNESS}")
    (warning,) = json.loads(rounds("status", "fake", "--json").stdout)["warnings"]
    assert (warning["metric"], warning["round"], warning["iteration"], warning["value"]) == (
        "update/approx_kl",
        2,
        2,
        0.3,
    )
    rounds("export", "fake", "--to", tmp_path / "out")
    assert "**1 warning**" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_without_warnings_does_not_speak_of_them(rounds, tmp_path):
    finished_run(tmp_path, "well", document(tmp_path, rounds=1))
    assert not re.search(r"^\d+ warning", rounds("status", "well", at=tmp_path).stdout, re.M)
    assert json.loads(rounds("status", "well", "--json", at=tmp_path).stdout)["warnings"] == []


def test_a_run_that_was_stopped_in_the_middle_says_what_was_seen_so_far(rounds, tmp_path):
    finished_run(tmp_path, "stopped", document(tmp_path), stop_before=("evaluate_policy", 2, 0))
    assert ILLNESS in rounds("status", "stopped", at=tmp_path).stdout


def test_what_could_not_be_reported_is_exit_3_with_the_results(rounds, monkeypatch):
    Executed(monkeypatch, unreported=["round 2: no route to the tracking server"])
    result = rounds("rerun", "fake", code=3)
    assert "not reported: round 2: no route to the tracking server" in result.stderr
    assert "round 2" in result.stdout


def test_a_server_that_went_away_is_exit_3_with_the_results(rounds, monkeypatch):
    Executed(monkeypatch, lost_server=True)
    monkeypatch.setattr(os, "_exit", sys.exit)
    result = rounds("rerun", "fake", code=3)
    assert "not reported: the Prefect server went away" in result.stderr
    assert "round 2" in result.stdout


def test_list_and_status(rounds, tmp_path):
    assert re.search(r"^fake +2/2 +finished +\d{4}-\d\d-\d\d \d\d:\d\d +2\.000 +1\.00", rounds("list").stdout, re.M)
    assert "rounds run quickstart" in rounds("list", at=tmp_path).stdout
    assert json.loads(rounds("list", "--json", at=tmp_path).stdout) == []
    assert rounds("status").stdout.startswith("fake: finished (")
    found = json.loads(rounds("status", "fake", "--json").stdout)
    assert found["state"] == "finished"
    assert {stage["state"] for stage in found["stages"]} == {"committed"}


def test_status_lists_attempts_and_rollouts_shows_one(rounds, home, tmp_path):
    assert rounds("status", "fake", "--attempts").stdout == "fake: every place has one attempt\n"
    finished_run(tmp_path, "twice", document(tmp_path))
    finished_run(tmp_path, "twice", document(tmp_path, advantages={"kl_coef": 0.5}))
    (earlier, current) = json.loads(rounds("status", "--attempts", "--json", at=tmp_path).stdout)["attempts"][:2]
    assert (earlier["differs"], current["is_current"]) == ("kl_coef: 0.05 → 0.5", True)
    assert f" {earlier['id']} " in rounds("status", "--attempts", at=tmp_path).stdout
    assert "r1.i1.s0.aa.0" in rounds("rollouts", "--attempt", earlier["id"], at=tmp_path).stdout
    assert "return" in rounds("show", "r1.i1.s0.aa.0", "--attempt", earlier["id"], at=tmp_path).stdout
    assert "no such output" in error_of(rounds("rollouts", "--attempt", "zz", at=tmp_path, code=2))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize(
    "command",
    [
        "rollouts --format jsonl",
        "rollouts --json",
        "rollouts --format csv",
        "rollouts",
        "status --json",
        "status",
        "list",
        "status nö",
        "show r1.i1.s0.aa.0",
        "rerun --dry-run",
    ],
)
def test_a_terminal_that_knows_few_characters_is_shown_the_others_as_escapes(tmp_path, encoding, command):
    strange = "ö 助手 😀 ∑"
    config = document(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": strange}) + "\n")
    finished_run(tmp_path, "fake", config)
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(
        [ROUNDS, "--home", str(tmp_path), *command.split()], capture_output=True, env=env, check=False
    )
    told = (done.stdout + done.stderr).decode(encoding)
    assert "Traceback" not in told
    assert done.returncode == (2 if "nö" in command else 0), told
    if "--json" in command:
        json.loads(done.stdout.decode(encoding))


def test_what_a_terminal_lacks_is_escaped_as_in_json():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    escape_what_streams_lack(stream)
    text = "ö ∑ 😀 \udc80"
    stream.write(json.dumps(text, ensure_ascii=False))
    stream.flush()
    written = stream.buffer.getvalue().decode("ascii")
    assert written == r'"\u00f6 \u2211 \ud83d\ude00 \udc80"'
    assert json.loads(written) == text


def test_a_dry_run_touches_nothing(rounds, home):
    root = home / "runs" / "fake"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    args = ("rerun", "fake", "--from", "score_rollouts", "--round", 2, "--iteration", 2, "--set", "seed=0", "--dry-run")
    result = rounds(*args)
    assert re.search(r"^score_rollouts +r2\.i2\.s0 +execute +1\.5 s +forced", result.stdout, re.M)
    assert re.search(r"^score_rollouts +r2\.i1\.s0 +reuse", result.stdout, re.M)
    # Two shards are scored, then advantages, update, audit, evaluation and report: 1.5 s each.
    assert result.stdout.splitlines()[-1] == "execute 7, reuse 28; expected 10.5 s"
    found = json.loads(rounds(*args, "--json").stdout)
    assert sum(step["executes"] for step in found["stages"]) == 7
    assert found["expected_seconds"] == 10.5
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_finished_run_has_nothing_to_execute_by_whatever_path_it_is_reached(rounds, home, tmp_path):
    (tmp_path / "link").symlink_to(home / "runs" / "fake")
    (tmp_path / "home" / "runs").mkdir(parents=True)
    (tmp_path / "home" / "runs" / "linked").symlink_to(home / "runs" / "fake")
    (tmp_path / "backup").mkdir()
    shutil.copytree(home / "runs" / "fake", tmp_path / "backup" / "monday")
    reached = [(tmp_path / "link", home), ("linked", tmp_path / "home"), (tmp_path / "backup" / "monday", home)]
    for name, at in reached:
        told = rounds("rerun", name, "--dry-run", at=at).stdout.splitlines()[-1]
        assert told.startswith("execute 0, reuse 35"), (name, told)
        assert "finished" in rounds("status", name, at=at).stdout.splitlines()[0]


def test_a_run_of_which_all_is_committed_and_told_is_not_executed(rounds, tmp_path, monkeypatch):
    run = finished_run(tmp_path, "config", document(tmp_path))
    config, executed = write_config(tmp_path), Executed(monkeypatch)
    monkeypatch.setattr(reported, "is_logged", lambda *_, **__: True)
    rounds("run", config, at=tmp_path)
    assert len(executed.configs) == 1, "nobody knows yet whether it was told"
    reported.note_reported(run, run.config, reports_of(make_plan(run, run.config)))
    told = rounds("run", config, at=tmp_path)
    assert len(executed.configs) == 1
    assert "nothing to do: all 35 stages are committed, and reported" in told.stderr
    assert re.search(r"^round 2 +2\.000 +0\.125 +1\.00 ", told.stdout, re.M)
    assert json.loads(rounds("rerun", "config", "--json", at=tmp_path).stdout)["unreported"] == []
    assert len(executed.configs) == 1
    # Whatever is left to do is done: another setting to be told, a stage that is forced, or that was and is not finished.
    rounds("run", config, "--set", "execution.micro_batch_tokens=64", at=tmp_path)
    rounds("run", config, at=tmp_path)
    assert len(executed.configs) == 2
    rounds("rerun", "config", "--from", "report_round", at=tmp_path)
    rounds("run", config, at=tmp_path)
    assert len(executed.configs) == 4
    monkeypatch.setattr(reported, "is_logged", lambda *_, **__: False)
    rounds("run", config, at=tmp_path)
    assert len(executed.configs) == 5


class Terminal(io.StringIO):
    """Standard error that says that it is a terminal."""

    def isatty(self):
        return True


def test_what_is_waited_for_is_said_on_a_terminal_and_taken_away_again(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    waiting = Waiting()
    waiting.over()
    waiting.on("reading a.yaml")
    waiting.on("b")
    waiting.over()
    waiting.over()
    assert terminal.getvalue() == f"reading a.yaml …\r{' ' * 16}\rb …\r{' ' * 3}\r"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    waiting.on("reading a.yaml")
    assert sys.stderr.getvalue() == "", "a log has no use for it"


def test_a_line_that_waits_is_no_longer_than_the_terminal_is_wide(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "10")
    Waiting().on("a long name.yaml")
    assert sys.stderr.getvalue() == "a long na\r"


def test_a_rerun_raises_generations_before_anything_executes_and_keeps_the_settings(rounds, tmp_path, monkeypatch):
    run = finished_run(tmp_path, "fake", document(tmp_path))
    executed = Executed(monkeypatch)
    rounds("rerun", "fake", "--from", "update_policy", "--round", 2, "--iteration", 2, at=tmp_path)
    below = ["round-002/iteration-002/update_policy", "round-002/evaluate_policy", "round-002/report_round"]
    assert executed.generations == [dict.fromkeys(below, 1)]
    rounds("rerun", "fake", "--set", "advantages.kl_coef=0.5", at=tmp_path)
    assert run.config.advantages.kl_coef == 0.5
    # Without --from and --set it goes on where it stopped: with those settings, and nothing forced again.
    rounds("rerun", "fake", at=tmp_path)
    assert executed.configs[-1].advantages.kl_coef == 0.5
    assert executed.generations[-1] == dict.fromkeys(below, 1)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--from", "training"), "--from training: no such stage; stages are prepare_data, "),
        (("--from", "warm_up"), "--from warm_up: this run has no such stage"),
        (("--from", "update_policy", "--round", 9), "--from update_policy: this run has no such stage in round 9"),
        (("--from", "update_policy", "--iteration", 9), "--iteration 9: round 2 has no update_policy there"),
        (("--round", 1), "name the stage with --from too"),
        (("--set", "ppo.cliprang=1"), "ppo.cliprang: unknown key; did you mean ppo.cliprange?"),
    ],
)
def test_a_rerun_of_what_is_not_there_is_refused(rounds, home, args, told):
    before = (home / "runs" / "fake" / "run.json").read_bytes()
    assert told in error_of(rounds("rerun", "fake", *args, code=2))
    assert (home / "runs" / "fake" / "run.json").read_bytes() == before


def test_rollouts_as_table_json_lines_and_csv(rounds):
    assert "round 2, iteration 2: 2 of 2 rollouts" in rounds("rollouts").stdout
    top = rounds("rollouts", "fake", "--round", 1, "--iteration", 1, "--sort", "-score", "--top", 1).stdout
    assert "r1.i1.s0.bb.0" in top
    assert "r1.i1.s0.aa.0" not in top
    lines = rounds("rollouts", "--format", "jsonl", "--sort", "score").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["score"] for row in rows] == [-1.0, 3.0]
    assert rows[0]["response_token_ids"] == [2, 3, 1]
    table = list(csv.DictReader(io.StringIO(rounds("rollouts", "--format", "csv", "--where", "score<0").stdout)))
    assert {row["length"] for row in table} == {"3"}
    assert table[0]["response"] == "[red]good[/red]\\x1b[2J\n dog"
    found = json.loads(rounds("rollouts", "--json", "--where", "score>9").stdout)
    assert (found["round"], found["iteration"], found["rollouts"]) == (2, 2, [])


@pytest.mark.parametrize("format_", ["table", "jsonl", "csv"])
def test_no_format_passes_on_what_acts_on_a_terminal(rounds, format_):
    assert "\x1b" not in rounds("rollouts", "--format", format_).output


def test_rollouts_refuse_what_they_cannot_do(rounds):
    assert "--where scor>1: scor: no such column; " in error_of(rounds("rollouts", "--where", "scor>1", code=2))
    assert "; columns are rollout_id, " in error_of(rounds("rollouts", "--sort", "scor", code=2))
    assert "has no rollouts of round 7" in error_of(rounds("rollouts", "--round", 7, code=2))
    rounds("rollouts", "--format", "xml", code=2)
    rounds("rollouts", "--top", 0, code=2)


def test_show(rounds):
    text = rounds("show", "r1.i1.s0.aa.0").stdout
    assert re.search(r"^1 +␣dog +3 +-1\.0000 +-1\.5000 +0\.5000 +0\.7500 +0\.2500 +2\.0000 +1\.2500", text, re.M)
    found = json.loads(rounds("show", "r1.i1.s0.aa.0", "--run", "fake", "--json").stdout)
    assert found["rollout_id"] == "r1.i1.s0.aa.0"
    assert [token["token"] for token in found["tokens"]] == ["good", " dog", "</s>"]
    assert "no such rollout" in error_of(rounds("show", "r1.i1.s0.zz.0", code=2))


def test_export(rounds, tmp_path):
    assert "the policy of run fake (round 2, iteration 2)" in rounds("export", "--to", tmp_path / "out").stdout
    assert "is not an empty directory" in error_of(rounds("export", "--to", tmp_path / "out", code=2))
    found = json.loads(rounds("export", "fake", "--to", tmp_path / "rm", "--what", "reward_model", "--json").stdout)
    assert (found["what"], found["round"]) == ("reward_model", 1)
    rounds("export", "fake", "--to", tmp_path / "x", "--what", "weights", code=2)


def test_down_without_a_server(rounds, tmp_path):
    assert rounds("down", at=tmp_path).stdout == "no server was running\n"


def test_a_mistake_on_the_command_line_is_exit_2(rounds):
    rounds("frobnicate", code=2)
    rounds("run", code=2)
    rounds("show", code=2)


def test_the_quickstart_is_a_preset_that_loads():
    assert load_config("quickstart").rounds >= 1
    assert yaml.safe_load((PRESETS / "quickstart.yaml").read_text())
