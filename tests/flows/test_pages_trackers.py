"""The pages lead to MLflow's and Prefect's own, and start MLflow's server when they are asked to."""

from contextlib import closing, contextmanager

import fake_runs
import pytest
from starlette.testclient import TestClient
from test_pages import BASE, PORT, TOKEN

from flows.pages.application import application
from flows.pages.site import Site
from flows.pages.trackers import Trackers
from tasks.errors import TransientError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    fake_runs.finished_run(home, "done", fake_runs.document(home), stop_before=("warm_up", 1, 0))
    return home


class Server:
    """What stands for MLflow's process."""

    def __init__(self):
        self.code = None

    def poll(self):
        return self.code


@pytest.fixture
def started(monkeypatch):
    """The ports of all servers that were started, and of those that were ended, in the place of real ones."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    noted = {"begun": [], "ended": [], "servers": []}

    @contextmanager
    def server(home, port):
        noted["begun"].append(port)
        noted["servers"].append(Server())
        yield noted["servers"][-1]
        noted["ended"].append(port)

    monkeypatch.setattr("flows.pages.trackers.mlflow_server", server)
    return noted


@pytest.fixture
def browser(home, started):
    with closing(Trackers(home)) as trackers:
        pages = application(Site(homes=(home,), trackers=trackers), token=TOKEN, hosts=("127.0.0.1",), port=PORT)
        headers = {"authorization": f"Bearer {TOKEN}"}
        yield TestClient(pages, base_url=BASE, headers=headers, follow_redirects=False)


def test_mlflow_is_started_when_it_is_asked_for_once_and_ends_with_the_pages(browser, started):
    for _ in range(2):
        page = browser.get("/runs/done").text
        assert 'href="/mlflow"' in page
        assert '<form method="post" action="/mlflow">' in browser.get("/mlflow").text
    assert started["begun"] == []
    for _ in range(2):
        answer = browser.post("/mlflow")
        assert (answer.status_code, answer.headers["location"]) == (303, "/mlflow")
    (port,) = started["begun"]
    assert f'href="http://127.0.0.1:{port}"' in browser.get("/runs/done").text
    page = browser.get("/mlflow").text
    assert f'href="http://127.0.0.1:{port}"' in page
    assert "<form" not in page
    # One that has ended by itself is started again, when it is asked for again.
    started["servers"][0].code = 1
    assert '<form method="post" action="/mlflow">' in browser.get("/mlflow").text
    browser.post("/mlflow")
    assert started["ended"] == [port]
    assert len(started["begun"]) == 2


def test_what_was_started_ends_when_the_pages_do(home, started):
    with closing(Trackers(home)) as trackers:
        trackers.start_mlflow()
    assert started["ended"] == started["begun"] != []


def test_nothing_is_started_for_who_may_not_read(browser, started):
    assert browser.post("/mlflow", headers={"origin": "http://evil.example"}).status_code == 403
    assert browser.post("/mlflow", headers={"authorization": "Bearer another"}).status_code == 401
    assert started["begun"] == []


def test_why_it_does_not_start_is_told_and_it_can_be_tried_again(browser, monkeypatch):
    @contextmanager
    def server(home, port):
        raise TransientError("MLflow's server ended with exit code 1; its log is <here>")
        yield

    monkeypatch.setattr("flows.pages.trackers.mlflow_server", server)
    answer = browser.post("/mlflow")
    assert answer.status_code == 503
    assert "its log is &lt;here&gt;" in answer.text
    assert '<form method="post" action="/mlflow">' in answer.text


def test_a_server_of_the_users_own_is_led_to_and_none_is_started(browser, started, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/base/")
    page = browser.get("/runs/done").text
    assert 'href="https://mlflow.example/base"' in page
    assert "secret" not in page
    assert browser.post("/mlflow").status_code == 303
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db.example/mlflow")
    page = browser.get("/mlflow").text
    assert "the database of" in page
    assert "secret" not in page
    assert "<form" not in page
    assert started["begun"] == []


def test_prefect_is_led_to_while_the_homes_server_runs(browser, monkeypatch):
    assert "Prefect" not in browser.get("/runs/done").text
    monkeypatch.setattr(
        "flows.pages.trackers.server_state", lambda home, patience_s: {"url": "http://127.0.0.1:4201/api"}
    )
    assert 'href="http://127.0.0.1:4201" target="_blank" rel="noreferrer">Prefect</a>' in browser.get("/runs/done").text
