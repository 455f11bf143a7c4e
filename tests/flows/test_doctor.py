"""``rounds doctor``: each thing that can be wrong, and what is said of it."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from fake_runs import document, finished_run
from typer.testing import CliRunner
from vllm_stand_in import serving

from flows.addresses import DEFAULT_PORT
from flows.cli.main import app
from flows.cli.options import FAILED
from flows.doctor import (
    OK,
    PROBLEM,
    WARNING,
    Finding,
    devices,
    examination,
    file_system,
    home_state,
    machine,
    network,
    servers,
    versions,
)

GIB = 2**30
PROXY_VARIABLES = [f"{scheme}_proxy" for scheme in ("http", "https", "all")]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("ROUNDS_HIDDEN_PROXIES", raising=False)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def closed_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        yield taken.getsockname()[1]


def call(*args):
    return CliRunner().invoke(app, ["doctor", *map(str, args)])


def test_a_sound_machine_is_told_so_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(
        devices, "seen_by_torch", lambda: {"torch": "2", "built_for": None, "devices": [], "mps": False}
    )
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    result = call("--home", tmp_path / "new", "--json")
    found = json.loads(result.stdout)
    assert {item["check"] for item in found} == {
        "versions", "cores", "memory", "accelerator", "disk", "file system", "runs", "ports", "proxies", "Prefect", "MLflow"
    }  # fmt: skip
    assert [item["found"] for item in found if item["state"] == PROBLEM] == []
    assert result.exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_problem_is_an_exit_code_and_a_warning_is_none(tmp_path, monkeypatch):
    findings = [
        Finding(check="disk", state=WARNING, found="[red]little\x1b[2J", next_move="make room"),
        Finding(check="ports", state=OK, found="free"),
    ]
    monkeypatch.setattr(examination, "examine", lambda home, asks_hub: findings)
    monkeypatch.setattr("flows.doctor.examine", lambda home, asks_hub: findings)
    result = call("--home", tmp_path)
    assert result.exit_code == 0
    assert "[red]little\\x1b[2J" in result.stdout
    assert "→ make room" in result.stdout
    findings.append(Finding(check="memory", state=PROBLEM, found="none"))
    assert call("--home", tmp_path).exit_code == FAILED


def test_the_hub_is_asked_only_if_the_user_wants_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(servers, "answer_of", lambda url: asked.append(url) or "")
    for check in ("versions", "machine", "devices"):
        monkeypatch.setattr(examination, f"check_{check}", list)
    examination.examine(tmp_path)
    assert asked == []
    assert examination.examine(tmp_path, asks_hub=True)[-1].found == "https://huggingface.co answers"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert examination.examine(tmp_path, asks_hub=True)[-1].state == WARNING
    assert asked == ["https://huggingface.co"]


def with_packages(monkeypatch, installed, needed):
    """Packages with these versions, and what they say that they need."""

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions.metadata, "version", version)
    monkeypatch.setattr(versions.metadata, "requires", lambda name: needed.get(name))


def test_each_version_outside_its_range_is_named_with_the_command_that_mends_it(monkeypatch):
    needed = {
        versions.OURS: [
            "mlflow<3.18,>=3.10",
            "torch>=2",
            "rich",
            'vllm>=0.16; extra == "vllm"',
            'pytest; extra == "test"',
        ],
        "mlflow": ["protobuf<8", "torch>=2", 'boto3; extra == "aws"'],
    }
    with_packages(monkeypatch, {"mlflow": "3.19.0", "torch": "2.13.0+cpu", "protobuf": "8.1", "vllm": "0.2"}, needed)
    told = {item.found: (item.state, item.next_move) for item in versions.check_versions()}
    assert told == {
        "mlflow 3.19.0 is installed, and rlhf-rounds needs <3.18,>=3.10": (PROBLEM, "pip install 'mlflow<3.18,>=3.10'"),
        "rich is not installed, and rlhf-rounds needs it": (PROBLEM, "pip install 'rich'"),
        "vllm 0.2 is installed, and rlhf-rounds needs >=0.16": (PROBLEM, "pip install 'vllm>=0.16'"),
        "protobuf 8.1 is installed, and mlflow needs <8": (WARNING, "pip install 'protobuf<8'"),
    }


def test_what_is_installed_here_works_together():
    assert [item.found for item in versions.check_versions() if item.state == PROBLEM] == []


def test_a_checkout_that_is_not_installed_is_told_so(monkeypatch):
    monkeypatch.setattr(versions, "OURS", "no-such-package")
    assert [item.state for item in versions.check_versions()] == [PROBLEM]


SEEN = {"torch": "2.13.0", "built_for": "13.0", "devices": [], "warning": "", "mps": False}
GPU = {"name": "H100", "error": "", "free": 70 * GIB, "total": 80 * GIB}


@pytest.mark.parametrize(
    ("seen", "has_driver", "state", "words"),
    [
        (SEEN, False, OK, "none; runs use the CPU"),
        ({**SEEN, "mps": True}, False, OK, "Apple MPS"),
        ({**SEEN, "built_for": None}, True, WARNING, "built without CUDA"),
        ({**SEEN, "warning": "driver too old"}, True, PROBLEM, "sees no GPU: driver too old"),
        (SEEN, True, PROBLEM, "CUDA_VISIBLE_DEVICES may hide it"),
        ({**SEEN, "devices": [GPU]}, True, OK, "H100, 70.0 GiB of 80.0 GiB free"),
        ({**SEEN, "devices": [{**GPU, "free": GIB}]}, True, WARNING, "1.0 GiB of 80.0 GiB free"),
        (
            {**SEEN, "devices": [{**GPU, "error": "no kernel image"}]},
            True,
            PROBLEM,
            "H100 cannot compute: no kernel image",
        ),
        ({"error": "killed"}, True, PROBLEM, "killed"),
    ],
)
def test_accelerators(seen, has_driver, state, words):
    (found,) = devices.of_devices(seen, has_driver=has_driver)
    assert found.state == state
    assert words in found.found
    assert bool(found.next_move) == (state != OK)


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE_S", 0.01)
    assert devices.seen_by_torch() == {"error": "torch did not answer within 0.01 s"}
    monkeypatch.setattr(devices, "PATIENCE_S", 60.0)
    monkeypatch.setattr(devices.sys, "executable", "/bin/false")
    assert devices.seen_by_torch() == {"error": "exit code 1"}


def test_what_torch_says_is_what_the_check_reads():
    assert set(devices.seen_here()) == set(SEEN)


def test_memory_is_that_which_a_container_leaves(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text(f"{GIB}\n")
    memory = tmp_path / "meminfo"
    assert machine.free_memory(memory, (tmp_path / "max",)) == 8 * GIB
    assert machine.free_memory(memory, (tmp_path / "max", tmp_path / "limit")) == GIB
    assert machine.free_memory(tmp_path / "none", ()) is None


@pytest.mark.parametrize(("free", "state"), [(GIB, WARNING), (3 * GIB, OK), (None, OK)])
def test_little_memory_is_a_warning(monkeypatch, free, state):
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    assert machine.check_machine()[1].state == state


@pytest.mark.parametrize(("free", "state"), [(2**20, PROBLEM), (GIB, WARNING), (50 * GIB, OK)])
def test_room_on_the_disk(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(file_system.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (found, _) = file_system.check_file_system(tmp_path / "not" / "there")
    assert found.state == state


def test_a_file_system_without_locks_or_renames_is_a_problem(tmp_path, monkeypatch):
    assert file_system.check_abilities(tmp_path).state == OK
    monkeypatch.setattr(file_system, "is_locked", lambda path: False)
    assert "has no locks" in file_system.check_abilities(tmp_path).found
    monkeypatch.undo()
    monkeypatch.setattr(file_system, "kind_of", lambda place: "nfs4")
    assert file_system.check_abilities(tmp_path).state == WARNING
    monkeypatch.setattr(file_system.tempfile, "TemporaryDirectory", refused)
    found = file_system.check_abilities(tmp_path)
    assert (found.state, "Read-only file system" in found.found) == (PROBLEM, True)


def refused(**_):
    raise OSError(30, "Read-only file system")


def test_the_kind_of_a_file_system_is_that_of_the_deepest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path.parent} nfs4 rw 0 0\nc {tmp_path}/with\\040blank xfs rw 0 0\n")
    (tmp_path / "with blank").mkdir()
    assert file_system.kind_of(tmp_path, mounts) == "nfs4"
    assert file_system.kind_of(tmp_path / "with blank", mounts) == "xfs"
    assert file_system.kind_of(tmp_path, tmp_path / "none") == ""


def test_runs_in_progress_broken_off_and_unreadable(tmp_path):
    runs = {name: finished_run(tmp_path, name, document(tmp_path, rounds=1, iterations=1)) for name in ("a", "b", "c")}
    assert [f.found for f in home_state.check_home_state(tmp_path)] == [f"3 runs in {tmp_path}, none in progress"]
    (runs["b"].root / "lock").write_text("process 1 on there (rounds run)")
    (runs["c"].root / "run.json").write_text("{}")
    with runs["a"].locked():
        told = {item.found.split()[0]: item for item in home_state.check_home_state(tmp_path)}
    assert (told["a"].state, f"in progress in process {os.getpid()}" in told["a"].found) == (OK, True)
    assert (told["b"].state, "process 1 on there (rounds run) ended" in told["b"].found) == (WARNING, True)
    assert told["b"].next_move.endswith("rerun b goes on with it")
    assert told["c"].state == WARNING


def test_the_sampling_servers_of_the_runs_are_asked_for_their_version(tmp_path, closed_port):
    with serving() as tested, serving(version="0.19.1") as other, serving(is_vllm=False) as unlike, serving() as locked:
        locked.key = "secret"
        away = f"http://127.0.0.1:{closed_port}"
        urls = [tested.url, other.url, f"{unlike.url}/v1", locked.url, away]
        for name in ("a", "b"):
            changes = {
                "execution": {"engine_servers": urls},
                "rollouts": {"engine": "vllm", "sampling": {"max_new_tokens": 4}},
            }
            finished_run(tmp_path, name, document(tmp_path, rounds=1, iterations=1, **changes))
        finished_run(tmp_path, "c", document(tmp_path, rounds=1, iterations=1))
        told = [(item.state, item.found) for item in servers.check_engine_servers(tmp_path)]
    assert told[:4] == [
        (OK, f"{tested.url} answers, vLLM 0.32.0"),
        (PROBLEM, f"{other.url}: it is vLLM 0.19.1, and only 0.32.* was tested"),
        (OK, f"{unlike.url} answers, and is not vLLM"),
        (OK, f"{locked.url} answers, and wants its key"),
    ]
    ((state, found),) = told[4:]
    assert (state, found.startswith(f"{away}: does not answer (")) == (WARNING, True)


def test_a_damaged_database_is_a_problem_and_one_in_use_is_none(tmp_path, monkeypatch):
    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 500)
    connection.close()
    assert [f.found for f in home_state.check_home_state(tmp_path)][1:] == ["mlflow.db is sound"]
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(home_state, "PATIENCE_S", 0.05)
    assert "in use or large" in home_state.check_home_state(tmp_path)[1].found
    holder.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    (_, found) = home_state.check_home_state(tmp_path)
    assert (found.state, found.next_move[:12]) == (PROBLEM, "move it away")
    path.write_bytes(b"nothing of the kind")
    assert home_state.check_home_state(tmp_path)[1].state == PROBLEM


def test_a_port_that_is_taken(tmp_path, monkeypatch, taken_port):
    monkeypatch.setattr(network, "DEFAULT_PORT", taken_port)
    (found,) = network.check_ports(tmp_path)
    assert (found.state, found.next_move) == (WARNING, "rounds ui --port 0 takes a free one")
    monkeypatch.setattr(network, "served_at", lambda home: f"http://127.0.0.1:{DEFAULT_PORT}")
    assert network.check_ports(tmp_path)[0].state == OK
    monkeypatch.setattr(network, "is_free", lambda port: False)
    assert network.check_ports(tmp_path)[0].state == PROBLEM


def test_proxies_are_named_without_their_passwords(monkeypatch, closed_port, taken_port):
    assert network.check_proxies() == [Finding(check="proxies", state=OK, found="none")]
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{closed_port}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{taken_port}")
    monkeypatch.setenv("all_proxy", "127.0.0.1:3128")
    by_name = {item.found.split()[0].rstrip(":"): item for item in network.check_proxies()}
    assert by_name["http_proxy"].found == f"http_proxy = http://127.0.0.1:{closed_port} does not answer"
    assert (by_name["http_proxy"].state, by_name["HTTPS_PROXY"].state, by_name["all_proxy"].state) == (
        WARNING,
        OK,
        PROBLEM,
    )


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_socks_proxy_that_httpx_cannot_use_is_told_also_where_we_hide_it(monkeypatch, is_hidden):
    value = "socks5://127.0.0.1:9"
    if is_hidden:
        monkeypatch.setenv("ROUNDS_HIDDEN_PROXIES", json.dumps({"ALL_PROXY": value}))
    else:
        monkeypatch.setenv("ALL_PROXY", value)
    monkeypatch.setattr(network.importlib.util, "find_spec", lambda name: None)
    (found,) = network.check_proxies()
    assert (found.state, found.next_move) == (WARNING, "pip install socksio, or unset ALL_PROXY")


def test_servers_that_do_not_answer(tmp_path, monkeypatch, closed_port):
    assert [item.state for item in servers.check_servers(tmp_path)] == [OK, OK]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed_port}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed_port}")
    prefect, mlflow = servers.check_servers(tmp_path)
    assert (prefect.state, mlflow.state) == (WARNING, WARNING)
    assert "Connection refused" in mlflow.found
    assert "secret" not in mlflow.found
    monkeypatch.setattr(servers, "is_healthy", lambda url: True)
    monkeypatch.setattr(servers, "answer_of", lambda url: "")
    assert [item.state for item in servers.check_servers(tmp_path)] == [OK, OK]


@pytest.mark.parametrize(
    ("uri", "state"), [("./mlruns", PROBLEM), ("file:///x", PROBLEM), ("postgresql://me:secret@db/x", OK)]
)
def test_a_tracking_address_that_is_no_server(monkeypatch, uri, state):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = servers.check_mlflow()
    assert found.state == state
    assert "secret" not in found.found


def test_a_server_of_the_home_that_does_not_answer_or_runs_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "server_state", lambda home, patience_s: {"url": "http://127.0.0.1:9/api"})
    found = servers.check_embedded(tmp_path)
    assert (found.state, "server.log" in found.found) == (WARNING, True)

    def elsewhere(home, patience_s):
        raise servers.TransientError("the Prefect server runs on there; work there")

    monkeypatch.setattr(servers, "server_state", elsewhere)
    found = servers.check_embedded(tmp_path)
    assert (found.state, found.found, found.next_move) == (WARNING, "the Prefect server runs on there", "work there")


def test_the_command_itself_imports_no_torch():
    code = (
        "import sys, flows.doctor, flows.terminal.views.doctor; print({'torch', 'mlflow', 'prefect'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
