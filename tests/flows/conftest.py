"""A home with its servers, in which the tests of whole runs start the command as a user would."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browsers import CHROMIUM, there
from direct_run import run_directly
from playwright.sync_api import sync_playwright

from flows.config.reading import load_config

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parent / "tiny.yaml"


class Home:
    """One home directory; ``rounds`` runs the command in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rounds(self, *args, code=0, **options):
        done = subprocess.run(
            [*self.command(*args)], capture_output=True, text=True, timeout=1800, **self.process(options)
        )
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *args):
        return json.loads(self.rounds(*args, "--json").stdout)

    def start(self, *args, **options):
        return subprocess.Popen(
            self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **self.process(options)
        )

    def prefect(self, path, body):
        """Ask the home's Prefect server as its pages do."""
        with urllib.request.urlopen(self.request(path, body), timeout=30) as response:
            return json.load(response)

    def request(self, path, body=None, method=None):
        """A request to the home's Prefect server by its owner."""
        url = json.loads((self.path / "prefect" / "server.json").read_text())["url"]
        secret = (self.path / "prefect" / "auth").read_text().strip()
        headers = {
            "content-type": "application/json",
            "authorization": f"Basic {base64.b64encode(secret.encode()).decode()}",
        }
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(f"{url}/{path}", data=data, headers=headers, method=method)

    def command(self, *args):
        return [str(Path(sys.executable).with_name("rounds")), "--home", str(self.path), *map(str, args)]

    def process(self, options):
        return {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, **options}

    def stages(self, run):
        """Manifest of every committed output by its directory."""
        root = self.path / "runs" / run / "stages"
        found = {str(path.parent.relative_to(root)): path for path in root.rglob("manifest.json")}
        return {name: json.loads(path.read_text()) for name, path in sorted(found.items())}

    def digests(self, run):
        return {name: manifest["digest"] for name, manifest in self.stages(run).items()}


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory):
    """A home with one real run, ``tiny``, which is only looked at."""
    home = tmp_path_factory.mktemp("looked-at")
    run_directly(home, "tiny", load_config(str(TINY), []))
    return home


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Where runs are made by name. Fixtures that make one last a session too: the tests of a module may come to a worker in
    two parts, with others between, and the second part would find the run made already."""
    home = Home(tmp_path_factory.mktemp("home"))
    yield home
    home.rounds("down")


@pytest.fixture(scope="session")
def tiny(home):
    """A finished run of two rounds, not to be changed."""
    home.rounds("run", TINY, "--name", "tiny")
    return "tiny"


def overrides(settings):
    """Settings by their dotted names, as the command takes them."""
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition, *, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def browser():
    playwright = there(sync_playwright().start)
    # The sandbox of Chromium refuses root, as whom containers run.
    yield there(playwright.chromium.launch, executable_path=CHROMIUM, args=["--no-sandbox"])
    there(playwright.stop)
