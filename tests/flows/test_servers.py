"""The home's Prefect server: who may use it, whose it is, and that a home has one. The servers are real."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Home, wait_for

from flows.server import embedded as servers
from flows.server.identity import started
from tasks import environment
from tasks.errors import TransientError
from tasks.store.locks import is_locked

NOBODY = 65534
URL = "http://127.0.0.1:4321/api"


# One server of a home of its own.


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A home whose server runs, with its owner's view of it."""
    home = Home(tmp_path_factory.mktemp("served") / "home")
    home.printed = home.rounds("up").stdout
    yield home
    home.rounds("down")


def state_of(home):
    return json.loads((home.path / "prefect" / "server.json").read_text())


def status_of(request):
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_owner_is_told_where_it_is_and_how_to_log_in(served):
    secret = (served.path / "prefect" / "auth").read_text().strip()
    assert served.printed == f"{state_of(served)['url'].removesuffix('/api')}\nlog in with: {secret}\n"
    assert len(secret) > 30
    assert status_of(served.request("flows/filter", {})) == 200
    assert served.rounds("up").stdout == served.printed
    assert "Warning" not in (served.path / "prefect" / "server.log").read_text()


def test_without_the_authentication_string_nothing_can_be_read_or_started(served):
    url = state_of(served)["url"]
    wrong = base64.b64encode(b"rounds:guess").decode()
    for headers in ({}, {"authorization": f"Basic {wrong}"}, {"authorization": "Bearer x"}):
        for path, body in (
            ("flows/filter", b"{}"),
            ("flow_runs/filter", b"{}"),
            ("deployments/filter", b"{}"),
            ("flow_runs/", b"{}"),
            ("deployments/", b"{}"),
            ("block_documents/filter", b"{}"),
            ("admin/settings", None),
            ("admin/database/clear", b"{}"),
            ("openapi.json", None),
            ("docs", None),
        ):
            headers = {**headers, "content-type": "application/json"}
            assert status_of(urllib.request.Request(f"{url}/{path}", data=body, headers=headers)) == 401, path


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"])
def test_no_websocket_opens_without_the_authentication_string(served, path):
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    url = f"{state_of(served)['url'].replace('http', 'ws')}/{path}"

    def hear(first, **options):
        with connect(url, proxy=None, **options) as socket:
            socket.send(json.dumps(first))
            return json.loads(socket.recv(timeout=20))

    prefect = {"subprotocols": ["prefect"]}
    for first in ({"type": "auth"}, {"type": "auth", "token": "rounds:guess"}, {"type": "filter", "filter": {}}):
        for options in (prefect, {}, {**prefect, "origin": "http://evil.example"}):
            with pytest.raises((ConnectionClosed, InvalidStatus)):
                hear(first, **options)
    secret = (served.path / "prefect" / "auth").read_text().strip()
    assert hear({"type": "auth", "token": secret}, **prefect) == {"type": "auth_success"}
    with pytest.raises(InvalidStatus):
        hear({"type": "auth", "token": secret}, **prefect, origin="http://evil.example")


def test_what_only_the_owner_may_read_only_the_owner_can(served):
    prefect = served.path / "prefect"
    assert stat.S_IMODE((prefect / "auth").stat().st_mode) == 0o600
    assert stat.S_IMODE(prefect.stat().st_mode) == 0o700


def test_the_authentication_string_is_in_no_log_and_no_list_of_processes(served):
    secret = (served.path / "prefect" / "auth").read_text().strip().removeprefix("rounds:")
    pid = state_of(served)["pid"]
    for shown in (Path(f"/proc/{pid}/cmdline"), Path(f"/proc/{pid}/environ"), served.path / "prefect" / "server.log"):
        assert secret.encode() not in shown.read_bytes()


@pytest.mark.slow
def test_a_new_authentication_string_replaces_one_that_others_could_read(tmp_path):
    home = Home(tmp_path / "home")
    home.rounds("up")
    first = (home.path / "prefect" / "auth").read_text()
    home.rounds("down")
    home.rounds("up")
    assert (home.path / "prefect" / "auth").read_text() == first
    home.rounds("down")
    (home.path / "prefect" / "auth").chmod(0o644)
    home.rounds("up")
    assert (home.path / "prefect" / "auth").read_text() != first
    home.rounds("down")


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("curl") is None, reason="only root can act as another user")
def test_another_user_of_the_machine_who_knows_the_port_can_neither_read_nor_start_anything(served):
    url = state_of(served)["url"]

    def curl(*arguments):
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *arguments]
        return subprocess.run(command, user=NOBODY, group=NOBODY, capture_output=True, text=True, cwd="/").stdout

    assert curl(f"{url}/health") == "200", "it reaches the port"
    for path in ("flow_runs/filter", "deployments/filter", "flows/", "flow_runs/", "artifacts/filter", "logs/filter"):
        for kind in ("application/json", "text/plain"):
            assert curl("-X", "POST", "-H", f"content-type: {kind}", "-d", "{}", f"{url}/{path}") in ("401", "415")
    read = subprocess.run(
        ["cat", served.path / "prefect" / "auth", served.path / "prefect" / "prefect.db"],
        user=NOBODY,
        capture_output=True,
    )
    assert read.stdout == b""


PAGE = """<!doctype html><body><script>
const said = {};
const attempt = async (name, path, options) => {
  try {
    const answer = await fetch("URL" + path, {method: "POST", body: '{"name": "page"}', ...options});
    said[name] = answer.type == "opaque" ? "unread" : String(answer.status);
  } catch (error) { said[name] = "blocked"; }
};
const json = {"content-type": "application/json"};
(async () => {
  await attempt("read", "/flow_runs/filter", {headers: json, body: "{}"});
  await attempt("health", "/health", {method: "GET", body: undefined});
  await attempt("plain", "/flows/", {headers: {"content-type": "text/plain"}});
  await attempt("blind", "/flows/", {mode: "no-cors"});
  await attempt("guess", "/flows/", {headers: {...json, "authorization": "Basic cm91bmRzOmd1ZXNz"}});
  await attempt("known", "/flows/", {headers: {...json, "authorization": "Basic SECRET"}});
  const socket = new WebSocket("URL".replace("http", "ws") + "/events/in", ["prefect"]);
  socket.onopen = () => { said.socket = "open"; };
  socket.onclose = () => {
    said.socket ??= "closed";
    fetch("/said", {method: "POST", body: JSON.stringify(said)});
  };
})();
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_page_of_another_origin_can_neither_read_nor_start_anything(served, tmp_path):
    """Not even one that knows the authentication string, which it does not."""
    secret = base64.b64encode((served.path / "prefect" / "auth").read_bytes().strip()).decode()
    page = PAGE.replace("URL", state_of(served)["url"]).replace("SECRET", secret).encode()
    said = {}

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self):
            said.update(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with serving(Pages) as url:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        browser = subprocess.Popen(
            ["chromium", *options, "--remote-debugging-port=0", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda: said, seconds=60)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    assert said.pop("blind") in ("unread", "blocked"), "a page is not told whether it arrived"
    assert said.pop("socket") == "closed"
    assert said == dict.fromkeys(("read", "health", "plain", "guess", "known"), "blocked")
    assert served.prefect("flows/filter", {"flows": {"name": {"any_": ["page"]}}}) == []


@contextmanager
def serving(handler):
    """Pages at an address of this machine."""
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{pages.server_address[1]}"
    finally:
        pages.shutdown()
        pages.server_close()


# Whose server it is.


def test_a_copied_home_has_a_server_of_its_own_and_leaves_the_originals_alone(served, tmp_path):
    copy = Home(tmp_path / "copy")
    shutil.copytree(served.path, copy.path)
    assert copy.rounds("down").stdout == "no server was running\n"
    assert servers.running_server(served.path) is not None
    copy.rounds("up")
    assert state_of(copy)["url"] != state_of(served)["url"]
    copy.prefect("flows/", {"name": "of-the-copy"})
    assert served.prefect("flows/filter", {"flows": {"name": {"any_": ["of-the-copy"]}}}) == []
    assert copy.rounds("down").stdout == "stopped\n"
    assert servers.running_server(served.path) is not None
    assert servers.running_server(copy.path) is None


def test_a_backup_of_hard_links_has_a_server_of_its_own_too(served, tmp_path_factory):
    copy = Home(served.path.parent / "links")
    shutil.copytree(served.path, copy.path, copy_function=os.link)
    assert copy.rounds("down").stdout == "no server was running\n"
    for name in ("prefect.db", "prefect.db-wal", "prefect.db-shm"):
        # A database cannot be shared by links, whoever opens it.
        (copy.path / "prefect" / name).unlink(missing_ok=True)
    copy.rounds("up")
    assert copy.rounds("down").stdout == "stopped\n"
    assert servers.running_server(served.path) is not None


@pytest.mark.slow
def test_a_moved_home_keeps_its_server_and_its_database(tmp_path):
    home = Home(tmp_path / "before")
    home.rounds("up")
    home.prefect("flows/", {"name": "made-before"})
    before = state_of(home)
    home.path = home.path.rename(tmp_path / "after")
    home.rounds("up")
    assert state_of(home) == before
    home.prefect("flows/", {"name": "made-after"})
    home.rounds("down")
    home.rounds("up")
    found = home.prefect("flows/filter", {"flows": {"name": {"like_": "made-"}}})
    assert {flow["name"] for flow in found} == {"made-before", "made-after"}
    assert not (tmp_path / "before").exists()
    home.rounds("down")


@pytest.mark.slow
def test_commands_that_are_killed_during_a_first_start_leave_one_server_that_down_finds(tmp_path):
    home = Home(tmp_path / "home")
    for delay in (0.3, 0.6, 1.0, 1.5, 2.5):
        command = home.start("up", start_new_session=True)
        time.sleep(delay)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
    together = [home.start("up") for _ in range(3)]
    printed = {command.communicate(timeout=200)[0] for command in together}
    assert len(printed) == 1
    assert len(processes_in(home.path / "prefect")) == 1
    assert home.rounds("down").stdout == "stopped\n"
    assert processes_in(home.path / "prefect") == []


def processes_in(directory):
    """Processes whose working directory this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == directory:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def held_state(home, **changes):
    """A home whose state file is locked by this process and says something."""
    directory = home / "prefect"
    directory.mkdir(parents=True)
    found = directory.stat()
    state = {
        "url": URL,
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "directory": [found.st_dev, found.st_ino],
        **changes,
    }
    (directory / "server.json").write_text(json.dumps(state))
    return subprocess.Popen(["flock", directory / "server.json", "sleep", "600"], start_new_session=True)


@pytest.fixture
def holding(monkeypatch):
    monkeypatch.setattr(servers, "ANSWER_S", 0.3)
    held = []

    def hold(home, **changes):
        held.append(held_state(home, **changes))
        wait_for(lambda: is_locked(home / "prefect" / "server.json"))

    yield hold
    for process in held:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_process_that_has_the_id_but_began_at_another_time_is_not_the_server(tmp_path, holding):
    holding(tmp_path / "home", started="1")
    with pytest.raises(TransientError, match="does not say who it is"):
        servers.stop_server(tmp_path / "home")


def test_a_server_on_another_machine_is_named_and_neither_used_nor_killed(tmp_path, holding):
    holding(tmp_path / "home", host="elsewhere")
    with pytest.raises(TransientError, match=r"runs on elsewhere \(process \d+\)"):
        servers.stop_server(tmp_path / "home")
    assert servers.running_server(tmp_path / "home") is None


def test_a_program_that_took_the_port_is_not_told_the_secret(served):
    """It may ask the real server for proofs, but those name another address."""
    heard = []

    class Impostor(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(dict(self.headers))
            with urllib.request.urlopen(state_of(served)["url"].removesuffix("/api") + self.path) as real:
                answer = real.read()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    assert servers.proves_itself(served.path, state_of(served)["url"])
    with serving(Impostor) as url:
        assert not servers.proves_itself(served.path, f"{url}/api")
    assert heard
    assert not any("uthorization" in str(headers) for headers in heard)


def test_a_proof_is_the_keyed_digest_of_what_was_asked_and_of_the_address(served):
    url = state_of(served)["url"]
    secret = (served.path / "prefect" / "auth").read_text().strip()
    with urllib.request.urlopen(f"{url.removesuffix('/api')}/rounds/identity?nonce=abc") as response:
        proof = json.load(response)["proof"]
    assert proof == hmac.new(secret.encode(), f"abc\n{url}".encode(), hashlib.sha256).hexdigest()


# What the environment says.


def test_this_machine_is_reached_without_a_proxy(served, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert servers.is_healthy(state_of(served)["url"])
    assert servers.running_server(served.path) == state_of(served)["url"]


@pytest.mark.parametrize("listed", ["", "example.com", "*"])
def test_loopback_is_added_to_what_no_proxy_is_for(monkeypatch, listed):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, listed)
    environment.keep_loopback_direct()
    environment.keep_loopback_direct()
    expected = {"": "127.0.0.1,localhost,::1", "example.com": "example.com,127.0.0.1,localhost,::1", "*": "*"}
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected[listed]


def test_a_socks_proxy_that_the_client_cannot_use_is_only_told_to_the_engine(monkeypatch):
    monkeypatch.delenv(environment.HIDDEN_PROXIES, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    environment.keep_loopback_direct()
    environment.keep_loopback_direct()
    assert "ALL_PROXY" not in os.environ
    assert os.environ["http_proxy"] == "http://proxy.example:3128"
    assert environment.worker_environment()["ALL_PROXY"] == "socks5://127.0.0.1:9"


def test_the_engine_is_not_told_the_authentication_string(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "rounds:secret")
    assert "rounds:secret" not in environment.worker_environment().values()


@pytest.mark.parametrize(
    "name", ["what?mode=ro", *(pytest.param(name, marks=pytest.mark.slow) for name in ("50%25 done #1", "für später"))]
)
def test_an_odd_path_keeps_the_database_inside_the_home(tmp_path, name):
    home = Home(tmp_path / name / "home")
    home.rounds("up")
    home.prefect("flows/", {"name": "odd"})
    home.rounds("down")
    assert (home.path / "prefect" / "prefect.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in (tmp_path / name).iterdir()] == ["home"]


def test_settings_of_another_prefect_are_not_for_the_homes_server(tmp_path):
    """In the environment, in a profile, and in the files that Prefect looks for in the working directory."""
    other = tmp_path / "other"
    other.mkdir()
    foreign = "sqlite+aiosqlite:////nowhere/prefect.db"
    (other / "profiles.toml").write_text(
        f'active = "work"\n[profiles.work]\nPREFECT_API_KEY = "k"\nPREFECT_SERVER_DATABASE_CONNECTION_URL = "{foreign}"\n'
    )
    (other / ".env").write_text(f"PREFECT_SERVER_DATABASE_CONNECTION_URL={foreign}\nPREFECT_LOGGING_LEVEL=LOUD\n")
    (other / "prefect.toml").write_text(
        f'[server.database]\nconnection_url = "{foreign}"\n[client]\nmax_retries = "x"\n'
    )
    env = {
        **os.environ,
        "PREFECT_HOME": str(other),
        "PREFECT_PROFILE": "work",
        "PREFECT_API_DATABASE_CONNECTION_URL": foreign,
        "PREFECT_SERVER_API_BASE_PATH": "/elsewhere",
        "PREFECT_CLIENT_CUSTOM_HEADERS": '{"x": "y"}',
        "PREFECT_SERVER_UI_SERVE_BASE": "/ui",
        "PREFECT_API_AUTH_STRING": "other:secret",
        "PREFECT_SERVER_API_AUTH_STRING": "other:secret",
    }
    home = Home(tmp_path / "home")
    home.rounds("up", env=env, cwd=other)
    home.prefect("flows/", {"name": "mine"})
    home.rounds("down", env=env, cwd=other)
    assert (home.path / "prefect" / "prefect.db").exists()
