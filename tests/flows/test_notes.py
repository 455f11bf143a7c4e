"""Notes: kept with the page that they are about, shown there, and obeyed nowhere."""

import json

import pytest
from starlette.testclient import TestClient

from flows.pages.application import application
from flows.pages.site import Site
from flows.runs import keep_note, notes, remove_note
from flows.runs.notes import file_of
from tasks.errors import ConfigError

TOKEN, PORT = "the-token", 7400
SEARCH = "/runs/mine/rollouts?q=score%3C0+sort%3A-length"
HOSTILE = "<script>alert(1)</script>\u202e"


@pytest.fixture
def browser(tmp_path):
    def opened(*, read_only=False, **headers):
        site = Site(homes=(tmp_path,), is_read_only=read_only)
        pages = application(site, token=TOKEN, hosts=("127.0.0.1",), port=PORT)
        own = {"authorization": f"Bearer {TOKEN}", **headers}
        return TestClient(pages, base_url=f"http://127.0.0.1:{PORT}", headers=own, follow_redirects=False)

    return opened


def test_a_note_is_kept_with_its_page_and_leads_back_to_it(browser, tmp_path):
    page = browser()
    kept = page.post("/notes", data={"about": SEARCH, "text": f"these are odd {HOSTILE}"})
    assert (kept.status_code, kept.headers["location"]) == (303, SEARCH)
    (note,) = page.get("/json/notes", params={"about": SEARCH}).json()["notes"]
    assert (note["address"], note["text"], note["is_about_it"]) == (SEARCH, f"these are odd {HOSTILE}", True)
    text = page.get("/notes").text
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert file_of(tmp_path).parent == tmp_path / "notes"


def test_a_page_says_how_many_notes_it_has(browser, tmp_path):
    page = browser()
    assert "1 note" not in page.get("/schedules").text
    keep_note(tmp_path, "/schedules", "look at this on Monday")
    keep_note(tmp_path, "/labels", "another page")
    assert "m 1 note<" in page.get("/schedules").text


def test_a_note_that_is_removed_is_gone_from_the_pages_and_its_line_stays(browser, tmp_path):
    first, second = (keep_note(tmp_path, "/labels", text) for text in ("one", "two"))
    assert browser().post(f"/notes/{first.note_id}/remove").status_code == 303
    assert notes(tmp_path) == [second]
    assert "one" in file_of(tmp_path).read_text()
    with pytest.raises(ConfigError, match="there is no such note, or no more"):
        remove_note(tmp_path, first.note_id)


def test_a_line_that_a_crash_broke_off_is_passed_over(tmp_path):
    first = keep_note(tmp_path, "/labels", "one")
    with file_of(tmp_path).open("a") as stream:
        stream.write(json.dumps({"note_id": "x"})[:-3])
    second = keep_note(tmp_path, "/labels", "two")
    assert notes(tmp_path) == [second, first]


@pytest.mark.parametrize(
    "address", ["", "//evil.example/", "/\\evil.example/", "https://evil.example/", "/\t/evil.example/", "/a b"]
)
def test_an_address_of_another_site_is_refused(browser, tmp_path, address):
    answer = browser().post("/notes", data={"about": address, "text": "go there"})
    assert answer.status_code == 400
    assert "is no address of these pages" in answer.text
    assert notes(tmp_path) == []


@pytest.mark.parametrize("text", ["", "  ", "x" * 10_001])
def test_a_note_without_words_or_with_too_many_is_refused(browser, tmp_path, text):
    assert browser().post("/notes", data={"about": "/labels", "text": text}).status_code == 400
    assert notes(tmp_path) == []


def test_nothing_is_written_for_another_site_or_where_only_is_read(browser, tmp_path):
    sent = {"about": "/labels", "text": "words"}
    assert browser(origin="http://evil.example").post("/notes", data=sent).status_code == 403
    assert browser(read_only=True).post("/notes", data=sent).status_code == 405
    assert "<form" not in browser(read_only=True).get("/notes", params={"about": "/labels"}).text
    assert notes(tmp_path) == []
