"""What a run does about errors, with the real engine, servers and allocators: what passes is tried again, alone."""

import http.server
import json
import os
import threading
import time

import pytest
from conftest import TINY, wait_for

# Imported by every process of the run: the worker finds its stages failing as a machine makes them fail.
TROUBLE = """
import os, pathlib
import tasks.contract

DIRECTORY = pathlib.Path(os.environ["TROUBLE"])
execute = tasks.contract.execute


def once(name):
    try:
        (DIRECTORY / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def troubled(call, models, report, **options):
    if call.label == "update_policy-r1.i1":
        with (DIRECTORY / "micro_batch_tokens").open("a") as stream:
            print(call.execution["micro_batch_tokens"], file=stream)
        if call.execution["micro_batch_tokens"] > 5000:
            import torch
            torch.empty(2**52)
    if call.label == "generate_rollouts-r1.i1.s1" and once("io"):
        os.read(os.open("/proc/self/mem", os.O_RDONLY), 1)
    return execute(call, models, report, **options)


tasks.contract.execute = troubled
"""
SERVICE = """
import json, urllib.request


def score(prompts, responses, rows):
    body = json.dumps(responses).encode()
    with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:{port}", data=body), timeout=2) as answer:
        return json.load(answer)


def broken(prompts, responses, rows):
    return [1 / len(rows[0]["no such column"]) for _ in responses]
"""


class Service(http.server.BaseHTTPRequestHandler):
    """A reward service: the score of a response is its length. The first requests it answers late, or with an error."""

    asked = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        if self.asked == 2:
            time.sleep(4)
        self.send_response(503 if self.asked == 3 else 200)
        self.end_headers()
        self.wfile.write(str([len(response) for response in json.loads(body)]).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        Service.asked = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def troubled(tmp_path, service):
    """The environment of a run on a machine that has all these troubles."""
    (tmp_path / "sitecustomize.py").write_text(TROUBLE)
    (tmp_path / "reward_service.py").write_text(SERVICE.replace("{port}", str(service)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path), "TROUBLE": str(tmp_path)}


REWARDS = "rewards={preference: {model: trained}, service: {function: 'reward_service:score'}}"
SMALL = ["--set", "rounds=1", "--set", "iterations=1", "--set", "evaluation.held_out_rewards={}", "--set"]


def runs_of(home, run):
    """Prefect's task runs of a run, by name."""

    def ended():
        (flow_run,) = home.prefect("flow_runs/filter", {"flow_runs": {"name": {"any_": [f"{run}-round-1"]}}})
        return flow_run["state_type"] in ("COMPLETED", "FAILED") and flow_run["id"]

    wait_for(ended, seconds=30)
    # The server's recorder is behind by a second or so.
    time.sleep(3)
    body = {"flow_runs": {"id": {"any_": [ended()]}}, "limit": 200}
    return {task["name"]: task for task in home.prefect("task_runs/filter", body)}


def test_what_passes_is_tried_again_alone_and_changes_nothing(home, troubled, tmp_path):
    done = home.rounds("run", TINY, "--name", "troubled", *SMALL, REWARDS, env=troubled)
    assert "DefaultCPUAllocator: can't allocate memory" in done.stderr
    assert "reward_service:score raised TimeoutError" in done.stderr
    assert "HTTPError" in done.stderr
    assert "Input/output error" in done.stderr
    assert (tmp_path / "micro_batch_tokens").read_text().split() == ["16384", "8192", "4096"]

    runs = runs_of(home, "troubled")
    again = {name: task["run_count"] for name, task in runs.items() if task["run_count"] > 1}
    scored = {name: count for name, count in again.items() if name.startswith("score_rollouts")}
    assert sum(count - 1 for count in scored.values()) == 2
    others = {name: count for name, count in again.items() if name not in scored}
    assert others == {"generate_rollouts-r1.i1.s1": 2, "update_policy-r1.i1": 3}

    for name in ("io", "micro_batch_tokens"):
        (tmp_path / name).unlink()
    del troubled["TROUBLE"]
    (tmp_path / "sitecustomize.py").unlink()
    home.rounds("run", TINY, "--name", "untroubled", *SMALL, REWARDS, env=troubled)
    assert home.digests("troubled") == home.digests("untroubled")


# It would be the first to ask for scores.
NO_PRETRAINING = ("--set", "critic_pretraining=null")


def test_what_does_not_pass_fails_at_once_with_its_reason_on_the_task(home, troubled, tmp_path):
    (tmp_path / "sitecustomize.py").unlink()
    rewards = REWARDS.replace("reward_service:score", "reward_service:broken")
    done = home.rounds("run", TINY, "--name", "broken", *SMALL, rewards, *NO_PRETRAINING, env=troubled, code=2)
    place = f"({tmp_path / 'reward_service.py'}, line 12)"
    reason = f"rewards.service: reward_service:broken raised KeyError: 'no such column' {place}; mend it and run again"
    log = home.path / "runs" / "broken" / "worker.log"
    assert f"{reason}; the whole traceback is in {log}" in done.stderr
    assert 'return [1 / len(rows[0]["no such column"]) for _ in responses]' in log.read_text()
    assert "Traceback" not in done.stderr
    task = runs_of(home, "broken")["score_rollouts-r1.i1.s0"]
    assert (task["run_count"], task["state_type"]) == (1, "FAILED")
    assert reason in task["state"]["message"]
    # What was committed before is there, for the run that follows.
    assert any("generate_rollouts" in name for name in home.stages("broken"))
