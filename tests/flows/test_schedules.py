"""Schedules: what a scheduled run does next, on runs made by hand; and ``rounds serve`` on a real server."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import TINY, wait_for
from fake_runs import document, finished_run
from typer.testing import CliRunner

from flows.cli import main as cli
from flows.config.reading import checked, dump
from flows.config.run_config import RunConfig
from flows.pages.application import page_text
from flows.pages.facts.schedules import facts, schedules_of
from flows.pages.pages import Page
from flows.pages.site import Asked, Site
from flows.plan.plan import make_plan
from flows.presets import quickstart
from flows.runs.workspace import Run
from flows.schedules.arrivals import next_step
from flows.schedules.limits import CODE, ELSEWHERE, FILES, HARMLESS, MODELS, require_within
from flows.schedules.schedules import Schedule, is_served, list_schedules, local_timezone, served_alone
from tasks.errors import RunError

NEVER = "0 0 1 1 *"
ROW = '{"prompt": "say", "chosen": "good", "rejected": "bad"}\n'


class World:
    """A home with data that arrives, and a run whose stages are committed by hand."""

    def __init__(self, directory):
        self.home = directory / "home"
        self.data = directory / "preferences"
        self.data.mkdir()
        self.arrive("a")
        self.document = document(directory, rounds=1)
        self.document["data"]["preferences"] = [str(self.data / "*.jsonl")]

    def arrive(self, name, text=ROW):
        (self.data / f"{name}.jsonl").write_text(text)

    def config(self, **changes):
        return checked({**self.document, **changes}, where="test")

    @property
    def run(self):
        return Run(self.home / "runs" / "nightly")

    def next(self, **changes):
        return next_step(self.run, self.config(**changes))

    def execute(self, step, **options):
        """Bring the run to what a step says."""
        finished_run(self.home, "nightly", dump(step.config), **options)

    def used(self, step):
        """Files and the rounds from which they count."""
        return {Path(source.path).stem: source.from_round for source in step.config.data.preferences}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_first_run_makes_the_rounds_that_are_configured_from_the_files_that_are_there(world):
    world.arrive("b")
    step = world.next(rounds=2)
    assert step.what == "starts run nightly with 2 rounds"
    assert (world.used(step), step.config.rounds) == ({"a": 1, "b": 1}, 2)
    assert not world.run.root.exists(), "asking changes nothing"


def test_nothing_is_started_before_there_is_data(world):
    (world.data / "a.jsonl").unlink()
    step = world.next()
    assert step.config is None
    assert step.what == f"nothing to start from: no file matches {world.data}/*.jsonl yet"


def test_without_new_files_there_is_nothing_to_do(world):
    world.execute(world.next())
    step = world.next()
    assert step.config is None
    assert step.what == f"nothing new: run nightly has used every file that matches {world.data}/*.jsonl"


def test_what_no_pattern_names_never_arrives(world):
    fixed = {**world.document["data"], "preferences": [str(world.data / "a.jsonl")]}
    world.execute(world.next(data=fixed))
    world.arrive("b")
    step = world.next(data=fixed)
    assert step.config is None
    assert "names no data by a pattern" in step.what


def test_files_that_arrived_add_one_round_and_leave_the_stages_before_it(world):
    world.execute(world.next())
    world.arrive("b")
    world.arrive("c")
    step = world.next()
    assert re.fullmatch(r"adds round 2 with \S+/b.jsonl, \S+/c.jsonl", step.what)
    assert (world.used(step), step.config.rounds) == ({"a": 1, "b": 2, "c": 2}, 2)
    stages = make_plan(world.run, step.config).stages
    assert {(planned.place.round, planned.ref is None) for planned in stages} == {(1, False), (2, True)}
    world.execute(step)
    assert world.next().config is None


def test_prompts_may_arrive_too_but_other_held_out_prompts_do_not(world):
    for kind in ("prompts", "held_out_prompts"):
        (world.data.parent / kind).mkdir()
        (world.data.parent / kind / "a.jsonl").write_text('{"prompt": "say"}\n')
        world.document["data"][kind] = [str(world.data.parent / kind / "*.jsonl")]
    world.execute(world.next())
    for kind in ("prompts", "held_out_prompts"):
        (world.data.parent / kind / "b.jsonl").write_text('{"prompt": "tell"}\n')
    data = world.next().config.data
    assert [source.from_round for source in data.prompts] == [1, 2]
    assert len(data.held_out_prompts) == 1


def test_an_unfinished_run_goes_on_before_anything_is_added(world):
    world.execute(world.next(), stop_before=("update_policy", 1, 2))
    world.arrive("b")
    step = world.next()
    assert re.fullmatch(r"goes on: \d+ of \d+ stages are committed", step.what)
    assert (world.used(step), step.config.rounds) == ({"a": 1}, 1)
    world.execute(step)
    assert world.used(world.next()) == {"a": 1, "b": 2}


def test_a_round_that_was_added_and_not_finished_is_not_added_again(world):
    world.execute(world.next())
    world.arrive("b")
    world.execute(world.next(), stop_before=("evaluate_policy", 2, 0))
    world.arrive("c")
    step = world.next()
    assert step.what.startswith("goes on")
    assert (world.used(step), step.config.rounds) == ({"a": 1, "b": 2}, 2)


def test_a_run_that_is_not_there_yet_takes_corrected_data(world):
    world.execute(world.next(), stop_before=("generate_rollouts", 1, 1))
    world.data.rename(world.data.with_name("elsewhere"))
    moved = {**world.document["data"], "preferences": [f"{world.data.parent}/elsewhere/*.jsonl"]}
    step = world.next(data=moved)
    assert step.what.startswith("starts")
    assert [Path(source.path).parent.name for source in step.config.data.preferences] == ["elsewhere"]


def test_more_rounds_may_be_asked_for_without_new_data(world):
    world.execute(world.next())
    step = world.next(rounds=3)
    assert (world.used(step), step.config.rounds) == ({"a": 1}, 3)


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda path: path.write_text(ROW.replace("good", "fine")), "has changed"),
        (lambda path: path.write_text(ROW * 2), "has 1 more line at its end"),
        (Path.unlink, "is gone"),
    ],
)
def test_a_file_that_was_used_must_stay_as_it_was(world, change, how):
    world.execute(world.next())
    change(world.data / "a.jsonl")
    world.arrive("b")
    with pytest.raises(RunError, match=rf"a.jsonl {how} since round 1 of run nightly .* belongs in new files"):
        world.next()


def test_a_file_of_a_round_that_is_not_finished_may_be_mended(world):
    world.execute(world.next())
    world.arrive("b")
    world.execute(world.next(), stop_before=("generate_rollouts", 2, 1))
    world.arrive("b", ROW * 2)
    assert world.next().what.startswith("goes on")


def test_other_settings_than_those_of_finished_rounds_are_refused(world):
    world.execute(world.next())
    with pytest.raises(RunError, match=r"finished rounds with other settings \(advantages.lam: 0.95 → 0.5\)"):
        world.next(advantages={"lam": 0.5})
    assert world.next(execution={"micro_batch_tokens": 7}).config is None, "it changes no result"


def test_settings_that_were_changed_by_hand_since_are_not_undone(world):
    world.execute(world.next())
    world.execute(next_step(Run(world.home / "runs" / "none"), world.config(advantages={"lam": 0.5})))
    world.arrive("b")
    with pytest.raises(RunError, match=r"advantages.lam: 0.5 → 0.95"):
        world.next()
    assert world.next(advantages={"lam": 0.5}).config.rounds == 2


def test_code_that_changed_does_not_make_finished_rounds_anew(world, monkeypatch):
    world.execute(world.next())
    world.arrive("b")
    monkeypatch.setattr("flows.plan.calls.code_digest", lambda import_path: "other code")
    with pytest.raises(RunError, match=r"audit_rollouts of round 1 .* anew .*code.*; if that is wanted: rounds rerun"):
        world.next()


def test_a_forced_rerun_that_was_interrupted_goes_on(world):
    world.execute(world.next())
    world.run.raise_generations(["round-001/evaluate_policy"])
    assert world.next().what.startswith("goes on")


def test_a_run_of_patterns_cannot_tell_what_is_new(world):
    finished_run(world.home, "nightly", world.document)
    with pytest.raises(RunError, match=r"was made from the pattern .*choose another --name"):
        world.next()


# The command line.


@pytest.fixture
def rounds(world):
    def call(*args, code=0):
        result = CliRunner().invoke(cli.app, ["--home", str(world.home), *map(str, args)])
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    return call


@pytest.fixture
def config_file(world, tmp_path):
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump(world.document))
    return path


def test_a_schedule_is_stored_listed_replaced_and_removed(world, rounds, config_file):
    assert "has no schedules yet" in rounds("schedule").stdout
    done = rounds("schedule", config_file, "--cron", "0 2 * * *", "--timezone", "Europe/Zurich")
    assert re.search(r"^nightly: 0 2 \* \* \* \(Europe/Zurich\), next at \d{4}-\d\d-\d\d 02:00$", done.stdout, re.M)
    assert "nothing serves this home now" in done.stderr
    rounds("schedule", config_file, "--cron", "@weekly", "--set", "iterations=5")
    found = json.loads(rounds("schedule", "--json").stdout)
    (listed,) = found["schedules"]
    assert not found["is_served"]
    assert (listed["cron"], listed["timezone"]) == ("@weekly", local_timezone())
    assert (listed["config"]["iterations"], listed["directory"]) == (5, str(Path.cwd()))
    rounds("schedule", "--remove", "nightly")
    assert list_schedules(world.home) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--cron: missing"),
        (["--cron", "61 2 * * *"], r"--cron '61 2 \* \* \*': not understood"),
        (["--cron", "often"], "--cron 'often': not understood"),
        (["--cron", "0 0 30 2 *"], r"--cron '0 0 30 2 \*': no day ever matches"),
        (["--cron", "0 0 31 4,6,9,11 *"], r"no day ever matches"),
        (["--cron", NEVER, "--timezone", "Mars"], "--timezone Mars: no such time zone"),
        (["--cron", NEVER, "--name", "a/b"], "--name a/b: use letters"),
        (["--cron", NEVER, "--set", "iterations=0"], "iterations=0: input should be greater than 0"),
        (["--cron", NEVER, "--set", "rewards.x={function: 'nowhere:f'}"], "rewards.x.function: .*nowhere"),
        (["--cron", NEVER, "--set", "data.texts=[nowhere.jsonl]"], "nowhere.jsonl does not exist"),
        (["--cron", NEVER, "--set", "ppo.max_grad_norm=.inf"], "ppo.max_grad_norm=inf: .*large number"),
        (["--cron", NEVER, "--set", "data.preferences=[{path: '*.md', limit: 3}]"], "limit counts over all files"),
    ],
)
def test_a_mistaken_schedule_is_one_sentence_and_is_not_stored(world, rounds, config_file, options, message):
    result = rounds("schedule", config_file, *options, code=2)
    (line,) = result.stderr.splitlines()
    assert re.search(message, line), line
    assert list_schedules(world.home) == []


def test_a_listed_schedule_says_what_it_would_do_now(world, rounds, config_file):
    rounds("schedule", config_file, "--cron", NEVER)

    def would():
        (listed,) = json.loads(rounds("schedule", "--json").stdout)["schedules"]
        return listed["is_ready"], listed["run_state"], listed["would"]

    assert would() == (True, "not begun", "starts run nightly with 1 round")
    (world.home / "schedules" / "nightly.json").write_text(
        (world.home / "schedules" / "nightly.json").read_text().replace(str(Path.cwd()), "/nowhere/at/all")
    )
    is_ready, _, told = would()
    assert not is_ready
    assert "/nowhere/at/all" in told
    assert "/nowhere/at/all" in " ".join(rounds("schedule").stdout.split())


def test_the_page_of_schedules_shows_what_the_command_says(world, rounds, config_file):
    assert schedules_of(world.home) == {"schedules": [], "is_served": False}
    rounds("schedule", config_file, "--cron", NEVER)
    assert schedules_of(world.home) == json.loads(rounds("schedule", "--json").stdout)
    page = Page(name="schedules", path="/schedules", facts=facts)
    text = page_text(Site(homes=(world.home,)), page, Asked())
    assert "starts run nightly with 1 round" in text
    assert "start <code>rounds serve</code>" in text
    (world.home / "schedules" / "nightly.json").write_text("{")
    with pytest.raises(RunError, match=r"nightly\.json cannot be read"):
        schedules_of(world.home)


def test_a_day_that_comes_every_four_years_is_a_schedule(rounds, config_file):
    done = rounds("schedule", config_file, "--cron", "0 0 29 2 *", "--timezone", "UTC")
    assert re.search(r"next at \d{4}-02-29 00:00", done.stdout)


def test_a_schedule_whose_day_never_comes_does_not_hide_the_others(world, rounds, config_file):
    rounds("schedule", config_file, "--cron", NEVER)
    stored = world.home / "schedules" / "nightly.json"
    other = json.loads(stored.read_text()) | {"name": "odd", "cron": "0 0 30 2 *"}
    stored.with_name("odd.json").write_text(json.dumps(other))
    listed = rounds("schedule").stdout
    assert re.search(r"odd .*never", listed)
    assert re.search(r"nightly .*\d{4}-01-01", listed)


# What a flow run may name.


@pytest.fixture
def limited(world, tmp_path):
    """Whether a flow run's configuration is within a schedule's: None if so, else the sentence that refuses it."""
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "data" / "more.jsonl").write_text(ROW)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.jsonl").write_text(ROW)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "work" / "data" / "linked.json").symlink_to(tmp_path / "elsewhere" / "secret.jsonl")
    world.document["model"] = {"policy": "org/policy", "critic": "org/critic"}
    world.document["rewards"] = {"judge": {"function": "mine:judge"}, "other": {"model": "org/judge"}}
    world.document.pop("reward_model", None)
    schedule = Schedule(
        name="nightly",
        cron=NEVER,
        timezone="UTC",
        directory=str(tmp_path / "work"),
        config=world.document,
    )

    def limited(schedule=schedule, **changes):
        document = {**world.document, **changes}
        with contextlib.chdir(schedule.directory):
            try:
                require_within(checked(document, where="config"), schedule)
            except RunError as error:
                return str(error)

    limited.schedule = schedule
    return limited


def test_a_flow_run_may_change_numbers_choices_and_what_is_in_the_schedules_directory(limited, tmp_path, world):
    assert limited() is None
    assert limited(seed=8, iterations=9, ppo={"cliprange": 0.3}, execution={"device": "cpu"}) is None
    assert limited(model={"policy": "org/critic", "critic": "policy"}) is None
    for path in (
        "data/more.jsonl",
        "data/*.jsonl",
        "data/none-yet-*.jsonl",
        str(tmp_path / "work" / "data" / "more.jsonl"),
    ):
        assert limited(data={**world.document["data"], "preferences": [path]}) is None, path


@pytest.mark.parametrize(
    "path",
    [
        "../elsewhere/secret.jsonl",
        "data/../../elsewhere/secret.jsonl",
        "data/none-yet-*/../../../elsewhere/*.jsonl",
        "link/secret.jsonl",
        "link/*.jsonl",
        "*/secret.jsonl",
        "data/*.json",
        "**/secret.jsonl",
        "/etc/passwd",
        "/etc/*.conf",
        "~/x.jsonl",
        "~nosuchuser/x.jsonl",
        "missing.jsonl",
    ],
)
def test_a_flow_run_may_not_leave_the_schedules_directory(limited, world, path):
    refused = limited(data={**world.document["data"], "preferences": [path]})
    assert refused.startswith(
        f"config.data.preferences.0.path={path} is neither the schedule's own nor in its directory"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"policy": "org/policy", "trust_remote_code": True}},
            "model.trust_remote_code=True may not be turned",
        ),
        (
            {"rewards": {"judge": {"function": "os:system"}}},
            "rewards.judge.function=os:system is not the schedule's own",
        ),
        ({"evaluation": {"held_out_rewards": {"x": {"function": "os:system"}}}}, "x.function=os:system is not"),
        ({"model": {"policy": "org/other"}}, "model.policy=org/other is neither"),
        ({"model": {"policy": "link"}}, "model.policy=link is neither"),
        ({"model": {"policy": "org/policy", "critic": "/models/x"}}, "model.critic=/models/x is neither"),
        ({"rewards": {"judge": {"model": "org/other"}}}, "rewards.judge.model=org/other is neither"),
        ({"rewards": {"function": {"function": "a:b"}}}, "rewards.function.function=a:b is not"),
        ({"model": {"policy": "org/policy", "revision": "evil"}}, "model.revision=evil is not the schedule's own"),
    ],
)
def test_a_flow_run_may_not_name_code_or_models_of_its_own(limited, changes, said):
    assert said in limited(**changes)


@pytest.mark.parametrize("source", [{"dataset": "org/other"}, {"function": "mine:other"}])
def test_a_flow_run_may_not_name_data_of_a_hub_or_functions_that_yield_it(limited, world, source):
    assert "is not the schedule's own" in limited(data={**world.document["data"], "prompts": [source]})


def test_a_flow_run_may_not_name_a_server(limited, world):
    rollouts = {**world.document["rollouts"], "engine": "vllm"}
    refused = limited(rollouts=rollouts, execution={"engine_servers": ["http://evil.example"]})
    assert "execution.engine_servers.0=http://evil.example is not the schedule's own" in refused


def test_where_code_of_models_is_trusted_only_the_schedules_models_are(limited, world, tmp_path):
    (tmp_path / "work" / "dropped").mkdir()
    assert limited(model={"policy": "dropped"}) is None, "a model is data"
    trusting = replace(
        limited.schedule, config={**world.document, "model": {"policy": "org/policy", "trust_remote_code": True}}
    )
    assert limited(trusting, model={"policy": "org/policy", "trust_remote_code": True}) is None
    assert "dropped is neither" in limited(trusting, model={"policy": "dropped", "trust_remote_code": True})


def test_every_text_of_a_configuration_is_known_to_name_something_or_to_be_harmless():
    classified = {*CODE, *MODELS, *FILES, *ELSEWHERE, *HARMLESS}
    assert free_texts(RunConfig.model_json_schema()) <= classified


def free_texts(schema):
    """The fields of a schema that take any text."""
    found = set()

    def walk(part, name, seen):
        if "$ref" in part:
            target = part["$ref"].rpartition("/")[2]
            if (target, name) not in seen:
                walk(schema["$defs"][target], name, {*seen, (target, name)})
        for inner in (*part.get("anyOf", []), *part.get("allOf", []), *part.get("oneOf", [])):
            walk(inner, name, seen)
        if part.get("type") == "string" and "enum" not in part and "const" not in part:
            found.add(name)
        for key, inner in part.get("properties", {}).items():
            walk(inner, key, seen)
        for key in ("additionalProperties", "items"):
            if isinstance(part.get(key), dict):
                walk(part[key], name, seen)

    walk(schema, "", set())
    return found


def test_a_schedule_without_a_pattern_says_so(rounds, world, config_file):
    path = world.data / "a.jsonl"
    done = rounds("schedule", config_file, "--cron", NEVER, "--set", f"data.preferences=[{path}]")
    assert "none can arrive" in done.stderr


def test_to_remove_or_serve_what_is_not_there_is_a_mistake(rounds):
    assert "no schedule of that name" in rounds("schedule", "--remove", "x", code=2).stderr
    assert "has no schedules" in rounds("serve", code=2).stderr


def test_to_serve_on_a_server_that_is_down_is_told_with_the_next_move(rounds, config_file, monkeypatch):
    rounds("schedule", config_file, "--cron", NEVER)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    told = rounds("serve", code=1).stderr
    assert told == (
        "error: PREFECT_API_URL=http://127.0.0.1:9/api does not answer; start that server, or unset it to use the home's\n"
    )


def test_a_home_is_served_by_one_process(world):
    assert not is_served(world.home)
    with served_alone(world.home):
        assert is_served(world.home)
        with pytest.raises(RunError, match=f"is served already, by process {os.getpid()}"), served_alone(world.home):
            pass
    assert not is_served(world.home)


# A served home.


class Server:
    """``rounds serve`` on a home, asked by what Prefect's pages ask."""

    def __init__(self, home, directory):
        self.home = home
        self.data = directory / "preferences"
        self.data.mkdir()
        self.config = directory / "nightly.yaml"
        self.log = directory / "serve.log"
        config = yaml.safe_load(TINY.read_text())
        config["data"]["preferences"].append(str(self.data / "*.jsonl"))
        self.config.write_text(yaml.safe_dump(config))
        self.process = None

    def arrive(self, name, part):
        rows = quickstart.preferences(seed=3, pairs=12, rankings=4, part=part)
        (self.data / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def schedule(self, name, *options, cron=NEVER):
        self.home.rounds("schedule", self.config, "--name", name, "--cron", cron, *options)

    def start(self):
        with self.log.open("a") as log:
            options = self.home.process({"stdout": log, "stderr": log, "start_new_session": True})
            self.process = subprocess.Popen(self.home.command("serve"), **options)
        wait_for(lambda: is_served(self.home.path) and self.answers())

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError, TypeError, KeyError):
            return all(self.deployment(schedule.name) for schedule in list_schedules(self.home.path))
        return False

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        return self.process.wait(60)

    def ask(self, path, body=None, method=None):
        request = self.home.request(path, body, method)
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                # Its database is locked by another writer for a moment.
                time.sleep(0.2)
        raise AssertionError(f"{path}: the server stays busy")

    def deployment(self, name):
        return self.ask(f"deployments/name/rlhf/{name}")

    def run_now(self, name, **parameters):
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return self.ask(f"deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"]

    def set_state(self, flow_run, **state):
        self.ask(f"flow_runs/{flow_run}/set_state", {"state": state, "force": True})

    def state(self, flow_run):
        return self.ask(f"flow_runs/{flow_run}")["state"]

    def name(self, flow_run):
        return self.ask(f"flow_runs/{flow_run}")["name"]

    def ended(self, flow_run):
        wait_for(lambda: self.state(flow_run)["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"))
        return self.state(flow_run)

    def logged(self, flow_run):
        body = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        return [entry["message"] for entry in self.ask("logs/filter", body)]

    def workers(self):
        """Workers below this process."""
        parents, found = {}, []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if b"tasks.worker.child" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return [process for process in found if parents.get(parents.get(process)) == self.process.pid]


@pytest.fixture(scope="module")
def server(home, tiny, tmp_path_factory):
    """A home that is served, with the schedule of a run that has two rounds."""
    shutil.copytree(home.path / "runs" / tiny, home.path / "runs" / "nightly")
    server = Server(home, tmp_path_factory.mktemp("served"))
    server.schedule("nightly")
    server.start()
    yield server
    if server.process.poll() is None:
        assert server.stop() == 130, server.log.read_text()
        assert "Traceback" not in server.log.read_text()
    for schedule in list_schedules(home.path):
        home.rounds("schedule", "--remove", schedule.name)
    for name in ("nightly", "minutely", "powerless", "headless"):
        shutil.rmtree(home.path / "runs" / name, ignore_errors=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "'config.seed'. Failure reason: -1 is less than the minimum of 0"),
        ({"algorithm": "pppo"}, "'pppo' is not one of"),
        ({"sede": 1}, "'sede' was unexpected"),
    ],
)
def test_the_server_refuses_parameters_that_are_no_configuration(server, change, message):
    config = server.deployment("nightly")["parameters"]["config"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.run_now("nightly", config=config | change)
    assert refused.value.code == 409
    assert message in json.load(refused.value)["detail"]


def test_the_form_says_what_each_field_is(server):
    schema = server.deployment("nightly")["parameter_openapi_schema"]
    assert schema["properties"]["run"]["description"].startswith("The run's name.")
    of_config = schema["definitions"]["RunConfig"]["properties"]
    assert of_config["seed"]["description"] == "Every random draw of the run is a function of it."
    assert of_config["rounds"]["exclusiveMinimum"] == 0


@pytest.mark.slow
def test_grown_by_a_file_that_arrived_started_twice_cancelled_and_continued(server, tiny):
    """One round on Prefect's pages; each part needs the one before."""
    home = server.home
    before = home.stages(tiny)
    assert server.ended(nothing := server.run_now("nightly"))["type"] == "COMPLETED"
    assert server.name(nothing) == "nightly · nothing new"

    server.arrive("a", 3)
    both = [server.run_now("nightly"), server.run_now("nightly")]
    wait_for(lambda: any(server.state(flow_run)["type"] == "CANCELLED" for flow_run in both))
    overlapping, running = sorted(both, key=lambda flow_run: server.state(flow_run)["type"] != "CANCELLED")
    assert server.name(overlapping) == "nightly · skipped"
    message = server.state(overlapping)["message"]
    assert re.search(r"run nightly is in progress in process \d+ on \S+ \(rounds serve\)", message)

    wait_for(lambda: any("round-003/prepare_data" in name for name in home.stages("nightly")))
    server.set_state(running, type="CANCELLING")
    assert server.ended(running)["type"] == "CANCELLED"
    wait_for(lambda: not server.workers(), seconds=10)
    # The last word is that of Prefect's runner, which looks every 3 s whether the process has ended.
    wait_for(lambda: server.state(running)["message"] == "Flow run was cancelled successfully.")
    assert not any("round-003/report_round" in name for name in home.stages("nightly"))

    server.arrive("b", 4)
    # What the button Retry does.
    server.set_state(running, type="SCHEDULED", name="AwaitingRetry")
    assert server.ended(running)["type"] == "COMPLETED"
    assert server.name(running) == "nightly · goes on"
    assert before.items() <= home.stages("nightly").items()
    assert {name.split("/")[0] for name in home.stages("nightly").keys() - before.keys()} == {"round-003"}
    wait_for(lambda: server.logged(running)[-1].startswith("results\n"), seconds=20)
    lines = server.logged(running)
    assert re.fullmatch(r"adds round 3 with \S+/a.jsonl", lines[0])
    assert any(re.fullmatch(r"goes on: \d+ of \d+ stages are committed", line) for line in lines), lines
    assert any(line.startswith("round 3 · report round: finished") for line in lines)


def test_a_flow_run_that_names_code_of_its_own_fails_before_anything_is_imported(server, tmp_path):
    """What another user of the machine once did: a model directory with Python in it."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = server.deployment("nightly")["parameters"]["config"]
    trusting = config | {"model": config["model"] | {"trust_remote_code": True}}
    ended = server.ended(server.run_now("nightly", run="evil", config=trusting))
    assert ended["type"] == "FAILED"
    assert "config.model.trust_remote_code=True may not be turned on here" in ended["message"]
    rewarding = config | {"rewards": config["rewards"] | {"evil": {"function": "evil:f"}}}
    ended = server.ended(server.run_now("nightly", run="evil", config=rewarding))
    assert "config.rewards.evil.function=evil:f is not the schedule's own" in ended["message"]
    assert not (server.home.path / "runs" / "evil").exists()
    assert not (tmp_path / "ran").exists()


def test_what_the_server_says_that_a_deployment_executes_is_not_believed(server, tmp_path):
    deployment = server.deployment("nightly")
    (tmp_path / "evil.py").write_text(
        f"from prefect import flow\nopen({str(tmp_path / 'ran')!r}, 'w')\n@flow\ndef f(run, config): pass\n"
    )
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {tmp_path / 'ran'}"}}
    changed = {"entrypoint": f"{tmp_path / 'evil.py'}:f", "path": str(tmp_path), "pull_steps": [step]}
    server.ask(f"deployments/{deployment['id']}", changed, method="PATCH")
    try:
        flow_run = server.run_now("nightly")
        ended = server.ended(flow_run)
        assert ended["type"] == "COMPLETED", (ended["message"], server.logged(flow_run))
        assert server.name(flow_run).startswith("nightly · "), "it is our flow"
        # A flow run that is cancelled has its hooks looked up.
        server.set_state(late := server.run_now("nightly"), type="CANCELLING")
        server.ended(late)
    finally:
        kept = {name: deployment[name] for name in changed}
        server.ask(f"deployments/{deployment['id']}", kept, method="PATCH")
    assert not (tmp_path / "ran").exists()


def test_the_server_of_a_served_home_is_not_stopped(server):
    assert "is served" in server.home.rounds("down", code=2).stderr


@pytest.mark.slow
def test_a_server_that_dies_under_a_served_run_is_replaced_and_the_run_goes_on(server):
    flow_run = server.run_now("nightly", run="headless")
    wait_for(lambda: any("prepare_data" in name for name in server.home.stages("headless")))
    before = json.loads((server.home.path / "prefect" / "server.json").read_text())
    os.killpg(before["pid"], signal.SIGKILL)
    wait_for(lambda: any("round-002/report_round" in name for name in server.home.stages("headless")))
    assert server.ended(flow_run)["type"] == "COMPLETED"
    assert server.process.poll() is None
    # It executes what is asked for on the pages of the new server.
    again = server.run_now("nightly", run="headless")
    assert server.ended(again)["type"] == "COMPLETED"
    assert server.name(again) == "headless · nothing new"


@pytest.mark.slow
def test_a_schedule_starts_its_run_by_itself(server):
    server.schedule("minutely", "--set", "iterations=1", cron="* * * * *")
    wait_for(lambda: "minutely" in server.log.read_text())
    wait_for(lambda: any("report_round" in name for name in server.home.stages("minutely")), seconds=180)
    server.home.rounds("schedule", "--remove", "minutely")
    wait_for(lambda: "minutely: no longer scheduled" in server.log.read_text())
    with pytest.raises(urllib.error.HTTPError):
        server.deployment("minutely")


@pytest.mark.slow
def test_what_was_paused_stays_paused_and_the_dead_are_told_when_it_is_served_again(server):
    """The power fails during a run of a schedule that somebody paused."""
    deployment = server.deployment("nightly")
    (when,) = deployment["schedules"]
    server.ask(f"deployments/{deployment['id']}/schedules/{when['id']}", {"active": False}, method="PATCH")
    flow_run = server.run_now("nightly", run="powerless")
    wait_for(lambda: any("prepare_data" in name for name in server.home.stages("powerless")))
    (worker,) = server.workers()
    parent = int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])
    for process in (server.process.pid, parent):
        os.kill(process, signal.SIGKILL)
    server.process.wait(10)
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), seconds=10)
    server.start()
    wait_for(lambda: server.state(flow_run)["type"] == "CRASHED")
    (when,) = server.deployment("nightly")["schedules"]
    assert (when["active"], when["schedule"]["cron"]) == (False, NEVER)
    server.schedule("nightly", cron="0 0 2 1 *")
    wait_for(lambda: server.deployment("nightly")["schedules"][0]["schedule"]["cron"] == "0 0 2 1 *")
