"""Who may read the pages, and what each shows."""

import json
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fake_runs
import pytest
from starlette.testclient import TestClient

from flows.addresses import base_address, page_path, pages_of_run, served, served_at
from flows.pages.application import application
from flows.pages.guard import HEADERS, token_of
from flows.pages.pictures import sparkline, two_histograms
from flows.pages.rendering import ago, as_data, cut, short_number, signed
from flows.pages.site import Asked, Site
from flows.runs.workspace import create_or_open
from flows.server import listening
from tasks.errors import ConfigError

TOKEN, PORT = "the-token", 7400
BASE = f"http://127.0.0.1:{PORT}"


def client(*homes, token=TOKEN, hosts=("127.0.0.1", "localhost"), **headers):
    """A browser that was given the token, unless it has another."""
    pages = application(Site(homes=homes), token=TOKEN, hosts=hosts, port=PORT)
    own = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(pages, base_url=BASE, headers={**own, **headers}, follow_redirects=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two finished runs, one of which was stopped, with text that would act on whoever shows it."""
    home = tmp_path_factory.mktemp("home")
    document = fake_runs.document(home)
    fake_runs.finished_run(home, "done", document)
    fake_runs.finished_run(home, "stopped", document, stop_before=("update_policy", 2, 1))
    return home


# Who may read


def test_without_the_token_nothing_is_read(home):
    for own in (None, "another", "the-token-and-more", ""):
        answer = client(home, token=own).get("/")
        assert answer.status_code == 401
        assert answer.text == "this needs the token of the home; open the address that rounds ui printed\n"
        assert "done" not in answer.text


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address(home):
    browser = client(home, token=None)
    answer = browser.get(f"/runs/done?x=a%26b&token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/done?x=a%26b")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=lax" in answer.headers["set-cookie"]
    assert browser.get("/runs/done").status_code == 200


def test_a_wrong_token_is_told_even_to_who_has_the_right_cookie(home):
    browser = client(home, token=None)
    browser.get(f"/?token={TOKEN}")
    answer = browser.get("/?token=stale")
    assert answer.status_code == 401
    assert answer.text.startswith("the token in this address is not that of the home; ")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7400", "127.0.0.1:7401", "127.0.0.1.evil.example:7400", ""]
)
def test_another_host_is_refused_though_the_token_is_right(home, host):
    answer = client(home, host=host).get("/")
    assert answer.status_code == 421
    assert "is no address of these pages" in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:7400", "localhost:7400", "localhost"])
def test_our_own_hosts_are_served(home, host):
    assert client(home, host=host).get("/").status_code == 200


def test_where_every_address_is_served_only_numbers_and_own_names_are_ours(home):
    for host, status in (
        ("192.168.7.5:7400", 200),
        ("[::1]:7400", 200),
        ("localhost:7400", 200),
        ("evil.example:7400", 421),
    ):
        assert client(home, hosts=("*",), host=host).get("/").status_code == status


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:4200", "null"])
def test_a_page_of_another_origin_is_refused(home, origin):
    for method in ("GET", "POST"):
        answer = client(home, origin=origin).request(method, "/")
        assert answer.status_code == 403
        assert "may not read or write here" in answer.text
    assert client(home, origin=BASE).get("/").status_code == 200


@pytest.mark.parametrize(("site", "mode", "status"), [
    ("cross-site", "no-cors", 403), ("same-site", "cors", 403), ("cross-site", "navigate", 200),
    ("same-origin", "cors", 200), ("none", "navigate", 200),
])  # fmt: skip
def test_other_sites_may_lead_here_but_not_fetch(home, site, mode, status):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert client(home, **headers).get("/").status_code == status


def test_every_answer_has_the_headers_that_keep_a_browser_from_harm(home):
    browser = client(home)
    for path in ("/", "/runs/done", "/runs/none", "/nothing", "/json", "/static/keys.js", "/static/plotly.js"):
        answer = browser.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, path
    assert "script-src" not in HEADERS["content-security-policy"]
    assert "unsafe-eval" not in HEADERS["content-security-policy"]


def test_the_token_is_the_owners_alone_and_stays(tmp_path):
    first = token_of(tmp_path / "home")
    path = tmp_path / "home" / "ui" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_of(tmp_path / "home") == first
    assert len(first) >= 32


def test_a_token_that_was_never_written_is_made_anew(tmp_path):
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui" / "token").touch(mode=0o600)
    assert len(token_of(tmp_path)) >= 32
    assert token_of(tmp_path) == (tmp_path / "ui" / "token").read_text()


# Pages


def test_every_page_has_a_twin_of_plain_facts(home):
    browser = client(home)
    run = browser.get("/json/runs/done").json()
    fingerprint = run["grid"][0]["stages"][0]["outputs"][0]
    for path in ("", "/runs/done", f"/runs/done/stages/{fingerprint}"):
        assert browser.get(path or "/").status_code == 200
        json.loads(browser.get(f"/json{path}").text)


def test_the_list_tells_runs_states_and_results(home):
    (done, stopped) = sorted(client(home).get("/json").json()["runs"], key=lambda run: run["name"])
    assert (done["state"], done["rounds_done"], done["rounds"]) == ("finished", 2, 2)
    assert (stopped["state"], stopped["rounds_done"]) == ("stopped", 1)
    assert set(done["held_out_gains"]) == {"true_quality"}


def test_a_run_that_was_stopped_says_where(home):
    rounds = client(home).get("/json/runs/stopped").json()["grid"]
    states = {
        (r["round"], int(i), cell["stage"]): cell["state"]
        for r in rounds
        for i, cells in r["iterations"].items()
        for cell in cells
    }
    assert states[2, 1, "compute_advantages"] == "committed"
    assert states[2, 1, "update_policy"] == "pending"
    assert 'class="cell pending"' in client(home).get("/runs/stopped").text


def test_runs_of_several_homes_are_told_apart(home, tmp_path):
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path, seed=7))
    browser = client(home, tmp_path)
    assert {run["called"] for run in browser.get("/json").json()["runs"]} == {"done", "stopped", "done@2"}
    assert browser.get("/json/runs/done@2").json()["directory"] == str((tmp_path / "runs" / "done").resolve())
    assert browser.get("/runs/done@3").status_code == 404


def test_a_stage_tells_what_it_was_made_from_and_into(home):
    browser = client(home)
    rounds = browser.get("/json/runs/done").json()["grid"]
    (update,) = [cell for cell in rounds[0]["iterations"]["1"] if cell["stage"] == "update_policy"]
    facts = browser.get(f"/json/runs/done/stages/{update['outputs'][0]}").json()
    assert {item["name"] for item in facts["made_from"]} >= {"experience", "policy"}
    (experience,) = [item for item in facts["made_from"] if item["name"] == "experience"]
    back = browser.get(f"/json/runs/done/stages/{experience['fingerprint']}").json()
    assert update["outputs"][0] in [item["fingerprint"] for item in back["made_into"]]


# Mistakes


@pytest.mark.parametrize(("path", "status", "told"), [
    ("/runs/gone", 404, "gone: there is no such run, or no more"),
    ("/runs/..%2f..%2fetc", 404, "no such page"),
    ("/runs/%2e%2e", 404, "there is no such run"),
    ("/runs/done/stages/0123456789abcdef", 404, "0123456789abcdef: run done has no such output, or no more"),
    ("/nothing", 404, "there is no such page"),
    ("/static/..%2fguard.py", 404, ""),
])  # fmt: skip
def test_what_is_not_there_is_told_in_a_sentence(home, path, status, told):
    answer = client(home).get(path)
    assert answer.status_code == status
    assert told in answer.text


def test_a_damaged_output_is_told_and_the_rest_is_shown(tmp_path):
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    (report,) = (tmp_path / "runs" / "done" / "stages" / "round-002").glob("report_round/*/summary.json")
    report.write_text("{")
    page = client(tmp_path).get("/runs/done")
    assert page.status_code == 200
    stages = client(tmp_path).get("/json/runs/done").json()["grid"][1]["stages"]
    assert (stages[-1]["state"], stages[-1]["reason"]) == ("pending", "output is damaged")
    assert client(tmp_path).get("/json").json()["runs"][0]["state"] == "damaged"


def test_a_run_file_that_is_half_written_is_told(tmp_path):
    run = create_or_open(tmp_path, "half")
    (run.root / "run.json").write_text('{"format": 1, "con')
    assert client(tmp_path).get("/json").json()["runs"][0]["state"] == "unreadable"
    answer = client(tmp_path).get("/runs/half")
    assert answer.status_code == 404
    assert "run.json" in answer.text


def test_an_empty_home_says_how_to_begin(tmp_path):
    assert "rounds run quickstart" in client(tmp_path / "none").get("/").text


@pytest.mark.parametrize("written", ["x", "-1", "0", "101", "1.5", "1" * 30])
def test_a_number_in_an_address_is_checked(written):
    asked = Asked(query={"page": written})
    with pytest.raises(ConfigError, match=r"page=.*: not a whole number from 1 to 100; correct the address"):
        asked.number("page", 1, low=1, high=100)
    assert Asked().number("page", 1, low=1, high=100) == 1


def test_a_port_in_use_is_told():
    with (
        listening("127.0.0.1", 0) as taken,
        pytest.raises(ConfigError, match="taken by another program; name another, or 0"),
    ):
        listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match=r"--host 203\.0\.113\.9: cannot be listened to"):
        listening("203.0.113.9", 0)
    with pytest.raises(ConfigError, match=r"--host no-such-host\.invalid: no address of this machine"):
        listening("no-such-host.invalid", 0)


# What is shown


@pytest.mark.parametrize(("value", "shown"), [
    (None, "–"), (0, "0"), (0.0, "0"), (12345, "12,345"), (1.6723, "1.67"), (15.42, "15.4"), (-0.5, "−0.500"),
    (123.4, "123"), (0.0123, "0.012"), (2e-5, "2.0e−05"), (float("nan"), "nan"), (1234.5, "1,234"),
])  # fmt: skip
def test_numbers_have_three_digits(value, shown):
    assert short_number(value) == shown


def test_differences_have_a_sign():
    assert [signed(value) for value in (1.5, -1.5, 0.0, None)] == ["+1.50", "−1.50", "0", "–"]


def test_data_for_scripts_cannot_end_its_element():
    text = str(as_data({"x": "</script><!--", "y": [float("nan"), float("inf"), 1.5], "z": "\u2028&"}))
    assert "<" not in text
    assert "&" not in text
    assert json.loads(text) == {"x": "</script><!--", "y": [None, None, 1.5], "z": "\u2028&"}


def test_long_texts_are_cut_and_say_so():
    assert cut("a\x1b[2J\nb") == "a\\x1b[2J\nb"
    assert cut("x" * 1_000_000).endswith("x … and 996,000 more characters")


def test_times_are_told_in_one_unit():
    now = time.time()
    assert [ago(now - passed) for passed in (5, 150, 7300, 3 * 86400)] == ["5 s ago", "2 min ago", "2 h ago", "3 d ago"]


def test_small_pictures_are_drawn_of_what_is_known():
    assert sparkline([1.0]) == ""
    assert sparkline([None, float("nan"), 2.0]) == ""
    assert 'points="2.0,19.0 48.0,3.0 94.0,11.0"' in sparkline([0.0, 2.0, 1.0])
    assert two_histograms([0, 0], [0, 0], 0, 1) == ""
    drawn = str(two_histograms([1, 0, 2], [1, 0, 0], 0, 1))
    assert (drawn.count('class="all"'), drawn.count('class="found"'), drawn.count('class="mark"')) == (2, 1, 0)
    assert '<rect class="mark" x="36.00" y="0" width="36.00"' in two_histograms([1, 2], [1, 2], 0, 4, (2.0, None))
    assert '<rect class="mark" x="72.00" y="0" width="1.00"' in two_histograms([1, 2], [1, 2], 0, 4, (7.0, 9.0))
    assert '<rect class="mark" x="0.00" y="0" width="72.00"' in two_histograms([2, 0], [2, 0], 1, 1, (None, 3.0))


# The command


def test_the_command_answers_until_it_is_stopped_and_imports_nothing_heavy(home):
    command = [str(Path(sys.executable).with_name("rounds")), "--home", str(home), "ui", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with browser.open(address, timeout=20) as answer:
                text = answer.read().decode()
        finally:
            server.terminate()
    assert "stopped" in text
    heavy = ("torch", "prefect", "mlflow", "transformers", "datasets", "pandas")
    code = f"import sys, flows.pages.serve; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_home_must_be_there(home):
    command = [str(Path(sys.executable).with_name("rounds")), "--home", str(home), "ui", "--also", "/nowhere/at/all"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --also /nowhere/at/all: no such directory; name a home")


# Addresses


def test_a_run_leads_to_its_page_while_it_is_served_and_else_to_the_command(tmp_path, monkeypatch):
    monkeypatch.delenv("ROUNDS_HOME", raising=False)
    home = tmp_path / "a home"
    assert pages_of_run(home, "x") == f"rounds --home '{home}' ui x"
    assert base_address(home) == "http://127.0.0.1:7400"
    with served(home, "http://127.0.0.1:7500"):
        with served(home, "http://127.0.0.1:7600"):
            assert pages_of_run(home, "x") == "http://127.0.0.1:7500/runs/x"
        assert base_address(home) == "http://127.0.0.1:7500"
    assert served_at(home) is None
    monkeypatch.setenv("ROUNDS_HOME", str(home))
    assert pages_of_run(home, "x") == "rounds ui x"


def test_addresses_leave_out_what_is_not_said():
    assert page_path("runs", "a@2", "rollouts", q="lamp & x", round=None, sort="") == "/runs/a@2/rollouts?q=lamp+%26+x"
    assert page_path() == "/"
