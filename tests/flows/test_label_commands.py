"""``rounds label``: from committed rollouts to preferences, in a terminal."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from test_labels import task as a_task
from typer.testing import CliRunner

from flows.cli.main import app
from flows.labels import all_answers, annotation_of, answers_of, find_queue, make_queue, save, shown_order
from flows.query import select
from flows.runs import find_run


@pytest.fixture
def home(looked_at, tmp_path):
    """A home with one real run, for one test alone."""
    home = tmp_path / "home"
    shutil.copytree(looked_at / "runs" / "tiny", home / "runs" / "tiny")
    return home


@pytest.fixture
def rounds(home):
    def invoke(*args, code=0):
        done = CliRunner().invoke(app, ["--home", str(home), "label", *map(str, args)])
        assert done.exit_code == code, done.output
        return done

    return invoke


def test_from_a_run_to_preferences(rounds, home, tmp_path):
    made = rounds("make", "tiny", "--round", "all", "--prompts", 4, "--candidates", 2, "--annotators", 2)
    assert made.stdout.startswith("queue tiny-1 with 5 tasks; give people their links: rounds label invite tiny-1 NAME")
    links = rounds("invite", "tiny-1", "ann", "bob")
    assert [line.split("  ")[0] for line in links.stdout.splitlines()] == ["ann", "bob"]
    assert "/label/tiny-1?token=" in links.stdout
    assert "the links work while rounds ui serves this home" in links.stderr
    assert rounds("invite", "tiny-1", "ann").stdout == links.stdout.splitlines(keepends=True)[0]
    queue = find_queue(home, "tiny-1")
    for who in ("ann", "bob"):
        for task, ranks in zip(list(queue.tasks.values())[:3], ([1, 2], [2, 1], [1, 2]), strict=True):
            sent = {"task_id": task.task_id, "answer_id": f"{who}-{task.task_id}", "ranks": ranks, "seconds": 4}
            save(queue, annotation_of(queue, who, {**sent, "shown": shown_order(queue, who, task)}))
    status = rounds("status").stdout
    assert status.startswith("tiny-1: 6 of 8 answers to 4 tasks of run tiny, 3 complete; Krippendorff's alpha 1.00")
    facts = json.loads(rounds("status", "tiny-1", "--json").stdout)
    assert [person["answered"] for person in facts["annotators"]] == [3, 3]
    assert "token" not in json.dumps(facts)
    assert "tiny-1" in rounds("list").stdout
    into = tmp_path / "preferences.jsonl"
    closed = rounds("close", "tiny-1", "--into", into).stdout
    assert closed == (
        f"wrote 3 preferences to {into}; train on them with: rounds add-round tiny --preferences {into}\n"
    )
    rows = [json.loads(line) for line in into.read_text().splitlines()]
    of_run = {row["rollout_id"]: row for row in select_all(home).dicts(["rollout_id", "response", "prompt"])}
    assert [row["ranks"] for row in rows] == [[1, 2], [2, 1], [1, 2]]
    for row in rows:
        assert [of_run[rollout_id]["response"] for rollout_id in row["rollout_ids"]] == row["responses"]
        assert {of_run[rollout_id]["prompt"] for rollout_id in row["rollout_ids"]} == {row["prompt"]}
    assert [queue["closed"] is not None for queue in json.loads(rounds("list", "--json").stdout)] == [True]


def select_all(home):
    from flows.labels.make import EVERY

    return select(find_run(home, "tiny"), rounds=EVERY, iterations=EVERY).data_set.search()


@pytest.mark.parametrize(("args", "told"), [
    (["make", "none"], "none"),
    (["make", "tiny", "--by", "luck"], "--by luck: not one of uncertainty, disagreement, gap, random"),
    (["make", "tiny", "--candidates", "12"], "--candidates 12: give a number from 2 to 9"),
    (["make", "tiny", "--round", "9"], "run tiny has no rollouts of round 9"),
    (["make", "tiny", "--guidelines", "/nowhere.md"], "--guidelines /nowhere.md cannot be read"),
    (["make", "tiny", "--name", "a/b"], "--name a/b: give a name of letters"),
    (["make", "tiny", "--generate", "--round", "1-2"], "--round 1-2: --generate samples from one checkpoint"),
    (["make", "tiny", "--generate", "--round", "7"], "run tiny has no policy of round 7"),
    (["status"], "has no queue yet; make one with: rounds label make"),
    (["invite", "none", "ann"], "queue none: there is no such queue"),
    (["close", "none", "--into", "p.jsonl"], "queue none: there is no such queue"),
])  # fmt: skip
def test_a_mistake_is_told_in_a_sentence(rounds, args, told):
    done = rounds(*args, code=2)
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_candidates_are_sampled_once_from_the_checkpoint_that_is_named(rounds, home):
    made = rounds("make", "tiny", "--generate", "--prompts", 3, "--candidates", 3, "--round", 1, "--iteration", 1)
    assert "queue tiny-1 with" in made.stdout
    run = find_run(home, "tiny")
    rows = (
        select(run, "candidates")
        .data_set.search()
        .dicts(["rollout_id", "prompt_id", "response", "policy_version", "round"])
    )
    assert len(rows) == 9
    assert len({row["prompt_id"] for row in rows}) == 3
    assert {row["round"] for row in rows} == {1}
    (manifest,) = [found for _, found in run.store.manifests() if found.stage == "generate_candidates"]
    updates = [(path, found) for path, found in run.store.manifests() if found.stage == "update_policy"]
    (update,) = [found for _, found in updates if (found.place.round, found.place.iteration) == (1, 1)]
    assert manifest.recipe["inputs"]["policy"] == update.digest
    assert {row["policy_version"] for row in rows} == {update.digest}
    # The same again is found, not made.
    before = manifest.committed_at
    assert (
        "queue tiny-2 with"
        in rounds(
            "make", "tiny", "--generate", "--prompts", 3, "--candidates", 3, "--round", 1, "--iteration", 1
        ).stdout
    )
    (manifest,) = [found for _, found in run.store.manifests() if found.stage == "generate_candidates"]
    assert manifest.committed_at == before


# Several people at once, and what a kill costs

ANNOTATOR = """
import http.cookiejar, json, sys, urllib.request
base, token, confirmed = sys.argv[1:4]
cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
opener.open(f"{base}?token={token}").read()
tasks = json.load(opener.open(f"{base}/tasks"))["tasks"]
while tasks:
    task = tasks.pop(0)
    sent = {"task_id": task["task_id"], "answer_id": f"{token[:8]}-{task['task_id']}", "shown": task["shown"],
            "ranks": list(range(1, len(task["shown"]) + 1)), "seconds": 1, "held": [t["task_id"] for t in tasks[:1]]}
    request = urllib.request.Request(f"{base}/answers", json.dumps(sent).encode(), {"content-type": "application/json"})
    told = json.load(opener.open(request))
    with open(confirmed, "a") as stream:
        stream.write(told["saved"] + "\\n")
    tasks = tasks[:1] + told["tasks"]
"""


def answer_all(tmp_path, *, number, people, annotators, kill_server=False):
    """Let people answer a queue over HTTP at once, each in a process, one of which is killed in the middle."""
    settings = {"run": "mine", "by": "random", "candidates": 3, "annotators": annotators, "seed": 0}
    queue = make_queue(tmp_path / "home", "many", [a_task(i) for i in range(number)], settings)
    tokens = queue.invite([f"p{i}" for i in range(people)])
    script = tmp_path / "annotator.py"
    script.write_text(ANNOTATOR)
    lists = {who: tmp_path / f"{who}.txt" for who in tokens}
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", "ui", "--port", "0", "--home"]
    with ExitStack() as processes:

        def begun(*args, **options):
            return processes.enter_context(subprocess.Popen(args, text=True, **options))

        server = begun(*command, tmp_path / "home", stdout=subprocess.PIPE)
        base = server.stdout.readline().split("/?")[0]
        link = f"{base}/label/many"
        workers = {
            who: begun(sys.executable, script, link, token, lists[who], stderr=subprocess.DEVNULL)
            for who, token in tokens.items()
        }
        while not lists["p0"].exists() or len(lists["p0"].read_text().split()) < number * annotators // people // 3:
            time.sleep(0.02)
        (server if kill_server else workers["p0"]).kill()
        codes = {who: worker.wait(timeout=600) for who, worker in workers.items()}
        server.kill()
    return queue, {who: set(path.read_text().split()) for who, path in lists.items() if path.exists()}, codes


def saved(queue):
    return {who: {answer.answer_id for answer in own.values()} for who, own in all_answers(queue).items()}


def check_all_there(queue, confirmed, codes, annotators):
    stored = saved(queue)
    for who, own in confirmed.items():
        assert own <= stored[who]
        # One answer may be on the disk of which the killed one was never told.
        assert len(stored[who] - own) <= (who == "p0" or codes[who] != 0)
    for task_id in queue.tasks:
        assert sum(task_id in answers_of(queue, who) for who in stored) >= annotators


def test_one_annotator_of_three_is_killed_and_nothing_that_was_saved_is_lost(tmp_path):
    queue, confirmed, codes = answer_all(tmp_path, number=40, people=3, annotators=1)
    assert [codes["p1"], codes["p2"]] == [0, 0]
    check_all_there(queue, confirmed, codes, 1)


@pytest.mark.slow
def test_a_queue_of_a_thousand_tasks_with_five_annotators_at_once(tmp_path):
    queue, confirmed, codes = answer_all(tmp_path, number=1000, people=5, annotators=2)
    assert [codes[f"p{i}"] for i in range(1, 5)] == [0] * 4
    check_all_there(queue, confirmed, codes, 2)
    # A task is asked once too often where several see it at the same time, which happens when few are left.
    assert sum(map(len, saved(queue).values())) <= 2000 + 50


def test_a_killed_server_has_all_that_it_confirmed(tmp_path):
    queue, confirmed, _ = answer_all(tmp_path, number=60, people=3, annotators=3, kill_server=True)
    stored = saved(queue)
    for who, own in confirmed.items():
        assert own <= stored[who]
    assert sum(map(len, stored.values())) < 180
    with_a_line = queue.directory / "answers" / "p1.jsonl"
    assert all(json.loads(line)["queue"] == "many" for line in with_a_line.read_text().splitlines())
