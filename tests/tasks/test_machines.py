"""Workers on other machines, as far as it takes no Ray: what is refused, and what an actor says of its child."""

import os
import socket
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from tasks import environment
from tasks.config.execution import ExecutionConfig
from tasks.contract import StageError
from tasks.errors import ConfigError
from tasks.models import device_mistakes
from tasks.worker.machines import actor as actors
from tasks.worker.machines import pool as pools
from tasks.worker.machines.actor import Actor
from tasks.worker.machines.facts import Facts, facts_of_node, mistake_of_node, unlike
from tasks.worker.machines.order import require_answer
from tasks.worker.placed import pool_of

# What is refused


def test_without_the_extra_it_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ray is not installed here; pip install 'rlhf-rounds\[ray\]'"):
        pool_of(tmp_path / "worker.log", ExecutionConfig(ray="node:6379"), [])


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "host", "host:", "user@host:1", "a b:1", ""])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(ValueError, match="is no address like host:6379"):
        ExecutionConfig(ray=address)


@pytest.mark.parametrize("address", ["host:6379", "10.0.0.1:1", "[::1]:6379"])
def test_names_and_numbers_are_addresses(address):
    assert ExecutionConfig(ray=address).ray == address


def serving(answer):
    """A server on this machine that says this to the first who comes, or nothing; its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with closing(server), closing(server.accept()[0]) as connection:
            connection.recv(100)
            if answer is None:
                connection.recv(1)
            else:
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_where_nobody_speaks_or_a_web_server_does_no_cluster_is_asked(monkeypatch):
    monkeypatch.setattr("tasks.worker.machines.order.ANSWER_S", 0.2)
    with pytest.raises(ConfigError, match=r"execution.ray=127.0.0.1:1: no Ray cluster answers there \("):
        require_answer("127.0.0.1:1")
    silent = serving(None)
    with pytest.raises(ConfigError, match=rf"execution.ray={silent}: no Ray cluster answers there \(timed out\)"):
        require_answer(silent)
    with pytest.raises(ConfigError, match="a web server answers there, and no Ray cluster"):
        require_answer(serving(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    # What gRPC says: an empty frame of settings.
    require_answer(serving(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])))


HERE = Facts(
    node="here", directory="/work", software={"Python": "3.11.7", "torch": "2.13.0"}, hardware={"the processor": "A"}
)
THERE = replace(HERE, node="there")


@pytest.mark.parametrize(
    ("there", "read", "sentence"),
    [
        (THERE, "nonce", None),
        (
            THERE,
            None,
            "execution.ray: node there does not see {run} as this machine does; put the home on a file system that all "
            "nodes share under the same path",
        ),
        (THERE, "other", "execution.ray: node there does not see {run} as this machine does; put the home on a file "),
        (
            replace(THERE, directory=None),
            "nonce",
            "execution.ray: node there has no directory /work, where the command is given and functions are looked for; "
            "give it in a directory that all nodes share",
        ),
        (
            replace(THERE, software={**HERE.software, "torch": "2.12.0"}),
            "nonce",
            "execution.ray: node there has torch 2.12.0, and this machine 2.13.0; install the same on both",
        ),
        (
            replace(THERE, software={"Python": "3.11.7"}),
            "nonce",
            "execution.ray: node there has torch none, and this machine 2.13.0; install the same on both",
        ),
    ],
)
def test_a_node_that_cannot_do_what_this_machine_does_is_named(tmp_path, there, read, sentence):
    mistake = mistake_of_node(HERE, there, probe=tmp_path / "probe", written="nonce", read=read)
    if sentence is None:
        assert mistake is None
    else:
        assert mistake.startswith(sentence.format(run=tmp_path))


def test_workers_whose_hardware_rounds_otherwise_are_refused():
    assert unlike([HERE, THERE]) is None
    assert unlike([HERE, THERE, replace(THERE, node="third", hardware={"the processor": "B"})]) == (
        "execution.ray: for the processor, node here has A and node third has B, which round otherwise; take one of them "
        "out of the cluster"
    )
    cores = [replace(HERE, hardware={"the processor": "A", "cores": number}) for number in ("2", "8")]
    assert unlike(cores).endswith("node here has 2 and node here has 8, which round otherwise; set OMP_NUM_THREADS")
    # Beside a GPU the processor computes nothing of a model.
    gpus = [replace(HERE, hardware={"the processor": name, "GPUs": "H100"}) for name in "AB"]
    assert unlike(gpus) is None
    assert "for GPUs, node here has H100 and node there has none" in unlike([gpus[0], THERE])


def test_a_function_of_other_code_is_told_and_one_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def software(code, function="own_rewards_of_nodes:score"):
        (tmp_path / "own_rewards_of_nodes.py").write_text(code)
        facts = facts_of_node([function], str(tmp_path))
        return {name: found for name, found in facts.software.items() if "code of" in name and "rlhf" not in name}

    one = software("def score(a, b, c): return 1")
    assert list(one) == ["the code of own_rewards_of_nodes:score"]
    assert software("def score(a, b, c): return 1  # the same") == one
    assert software("def score(a, b, c): return 2") != one
    (missing,) = software("", "no_such_module_of_nodes:score").values()
    assert missing.startswith("none (no_such_module_of_nodes:score: no file holds the module")


def test_each_node_gives_a_worker_its_own_device_so_that_one_of_them_is_enough(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "A")
    assert device_mistakes(ExecutionConfig(device="cuda", workers=4, ray="host:6379")) == []
    assert len(device_mistakes(ExecutionConfig(device="cuda", workers=4))) == 1


# What runs on a node


def test_a_node_has_the_threads_of_the_run_whatever_ray_sets_and_no_secret_crosses(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "3", "HF_HOME": "/models", "HF_TOKEN": "x", "PATH": "/here"})
    passed = environment.passed_on()
    assert passed == {"OMP_NUM_THREADS": "3", "HF_HOME": "/models"}
    monkeypatch.setattr(
        os, "environ", {"OMP_NUM_THREADS": "1", "HF_TOKEN": "y", "PATH": "/there", "MKL_NUM_THREADS": "1"}
    )
    environment.take_over(passed)
    assert os.environ == {"OMP_NUM_THREADS": "3", "HF_HOME": "/models", "HF_TOKEN": "y", "PATH": "/there"}
    environment.take_over({})
    assert not environment.names_threads()


class Child:
    """A supervisor whose child says so much and then fails, or not."""

    def __init__(self, log, *, settings):
        self.log, self.begun = log, 0

    def begin(self):
        self.begun += 1

    def ask(self, request, label, *, report, timeout_s, is_cancelled):
        report({"done": 1, "total": 2})
        report({"warning": "beware"})
        if request == "fail":
            raise StageError("memory", "the worker was killed", stage="", log=str(self.log))
        return {"digest": "d"}


def test_an_actor_says_what_its_child_says_and_has_a_new_one_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(actors, "Supervisor", Child)
    monkeypatch.setattr(environment, "take_over", lambda passed: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe").write_text("nonce")
    worker = Actor(str(tmp_path / "worker.log"), {})
    facts, read = worker.prepare(str(tmp_path), str(tmp_path / "probe"), {}, [])
    assert (facts.directory, read) == (str(tmp_path), "nonce")
    told = [{"progress": {"done": 1, "total": 2}}, {"progress": {"warning": "beware"}}]
    assert list(worker.ask("work")) == [*told, {"done": {"digest": "d"}}]
    failure = {"kind": "memory", "message": "the worker was killed", "is_of_users_code": False}
    assert list(worker.ask("fail")) == [*told, {"error": {**failure, "log": str(tmp_path / "worker.log")}}]
    assert worker._supervisor.begun == 2


def test_an_actor_on_a_node_without_the_directory_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(actors, "Supervisor", None)
    monkeypatch.setattr(environment, "take_over", lambda passed: None)
    facts, read = Actor("worker.log", {}).prepare(str(tmp_path / "none"), str(tmp_path / "probe"), {}, ["no:function"])
    assert (facts.directory, read) == (None, None)
