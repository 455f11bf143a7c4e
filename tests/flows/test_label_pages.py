"""Who may answer, what annotators see and send, and what the owner sees of it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import fake_runs
import pytest
from starlette.testclient import TestClient

from flows.labels import LabelTask, all_answers, answers_of, close, find_queue, make_queue, queues
from flows.labels.annotations import file_of
from flows.pages.application import application
from flows.pages.site import Site

TOKEN, PORT = "the-token", 7400
BASE = f"http://127.0.0.1:{PORT}"
HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J"
SETTINGS = {"run": "their-run", "by": "random", "candidates": 3, "annotators": 1, "seed": 0}


def some_tasks(number=3, responses=("the lamp is red", "the lamp is blue", HOSTILE)):
    return [
        LabelTask(
            task_id=f"t{i:04d}", prompt=f"say {i} {HOSTILE}", responses=responses, rollout_ids=("x.0", "x.1", "x.2"),
            scores=(0.123, 4.567, 8.901),
        )
        for i in range(number)
    ]  # fmt: skip


@pytest.fixture
def home(tmp_path):
    queue = make_queue(tmp_path, "first", some_tasks(), SETTINGS)
    make_queue(tmp_path, "second", some_tasks(), SETTINGS).invite(["eve"])
    queue.invite(["ann", "bob"])
    return tmp_path


def browser(home, *, token=None, read_only=False, **headers):
    pages = application(Site(homes=(home,), is_read_only=read_only), token=TOKEN, hosts=("127.0.0.1",), port=PORT)
    own = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(pages, base_url=BASE, headers={**own, **headers}, follow_redirects=False)


def opened(home, who="ann", queue="first"):
    """The browser of a person who has opened their link."""
    found = browser(home)
    token = find_queue(home, queue).people()[who]
    answer = found.get(f"/label/{queue}?token={token}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/label/{queue}")
    return found


def facts_of(page):
    return json.loads(re.search(r'id="facts">(.*?)</script>', page.text, re.DOTALL)[1])


def an_answer(task, **more):
    shown = task["shown"]
    whole = {"task_id": task["task_id"], "answer_id": f"of-{task['task_id']}-1", "shown": shown, "seconds": 2.0}
    return {**whole, "ranks": list(range(1, len(shown) + 1)), **more}


# Who may answer


def test_a_link_opens_its_queue_and_nothing_else(home):
    ann = opened(home)
    assert ann.get("/label/first").status_code == 200
    assert ann.get("/static/label.js").status_code == 200
    for path in ("/", "/runs", "/labels", "/labels/first", "/json/labels", "/label/second"):
        answer = ann.get(path)
        assert answer.status_code == 401, path
        assert "needs the token of" in answer.text
    for path in ("/label/none", "/label/", "/label/none/answers"):
        answer = ann.get(path)
        assert (answer.status_code, answer.text[:22]) == (404, "there is no such queue")
    assert ann.post("/labels", content="run=done").status_code == 401
    assert ann.post("/labels/first/people", content="name=eve").status_code == 401


@pytest.mark.parametrize("token", ["", "another", TOKEN])
def test_without_a_link_of_the_queue_nobody_answers(home, token):
    found = browser(home, token=TOKEN)
    answer = found.get(f"/label/first?token={token}")
    assert answer.status_code == 401
    assert "is not that of an annotator of this queue; open the link that you were given" in answer.text
    # The owner's token is nobody's name.
    assert found.get("/label/first").status_code == 401
    assert found.post("/label/first/answers", json={}).status_code == 401


def test_no_other_page_answers_in_a_persons_name(home):
    ann = opened(home)
    (task, *_) = facts_of(ann.get("/label/first"))["tasks"]
    answer = ann.post("/label/first/answers", json=an_answer(task), headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert all_answers(find_queue(home, "first")) == {}


def test_read_only_pages_take_no_answer(home):
    found = browser(home, token=TOKEN, read_only=True)
    assert found.get("/labels").status_code == 200
    assert "<form" not in found.get("/labels").text + found.get("/labels/first").text
    assert found.post("/labels", content="run=done").status_code == 405
    token = find_queue(home, "first").people()["ann"]
    assert found.get("/label/first", headers={"cookie": f"rounds-{PORT}-first={token}"}).status_code == 404


# What annotators see and send


def test_a_page_says_nothing_of_scores_and_of_where_responses_come_from(home):
    page = opened(home).get("/label/first")
    for secret in ("0.123", "4.567", "x.1", "their-run", "scores"):
        assert secret not in page.text


def test_text_is_shown_and_never_obeyed(home):
    page = opened(home).get("/label/first")
    assert "<script>alert" not in page.text
    (task, *_) = facts_of(page)["tasks"]
    shown = task["turns"][0]["text"] + task["cards"][task["shown"].index(2)]["text"]
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert shown.count("<script>alert(1)</script>\\u202e\\x1b[2J") == 2


def test_guidelines_are_markdown_without_markup_of_their_own(tmp_path):
    path = tmp_path / "guidelines.md"
    path.write_text("# Be *kind*\n\n<img src=x onerror=alert(1)> [here](javascript:alert(1))\n")
    make_queue(tmp_path, "first", some_tasks(), SETTINGS, guidelines=path).invite(["ann"])
    page = opened(tmp_path).get("/label/first").text
    assert "<h1>Be <em>kind</em></h1>" in page
    assert "<img" not in page
    assert 'href="javascript' not in page


def test_what_responses_share_and_where_they_differ(tmp_path):
    make_queue(tmp_path, "first", some_tasks(1, ("the lamp is red", "the lamp is blue")), SETTINGS).invite(["ann"])
    (task,) = facts_of(opened(tmp_path).get("/label/first"))["tasks"]
    for found in task["cards"]:
        assert found["text"][: found["shared"]] == "the lamp is "
        assert found["pieces"] == [[True, "the lamp is"], [False, found["text"][len("the lamp is") :]]]


def test_an_answer_is_saved_before_it_is_confirmed_and_the_next_tasks_come_with_it(home):
    ann = opened(home)
    first, second, third = facts_of(ann.get("/label/first"))["tasks"]
    held = [second["task_id"]]
    told = ann.post("/label/first/answers", json={**an_answer(first, note="fine"), "held": held}).json()
    assert told["saved"] == f"of-{first['task_id']}-1"
    assert told["answered"] == [first["task_id"]]
    assert [task["task_id"] for task in told["tasks"]] == [third["task_id"]]
    assert told["left"] == 2
    stored = answers_of(find_queue(home, "first"), "ann")[first["task_id"]]
    assert (stored.ranks, stored.note) == ((1, 2, 3), "fine")
    back = ann.get(f"/label/first/tasks/{first['task_id']}").json()
    assert back["answer"] == {"ranks": [1, 2, 3], "margin": "", "note": "fine", "skipped": ""}
    again = ann.get("/label/first")
    assert facts_of(again)["answered"] == [first["task_id"]]


def test_an_answer_sent_twice_is_one_and_a_late_one_is_kept_and_told(home):
    ann, bob = opened(home), opened(home, "bob")
    first, second, _ = facts_of(ann.get("/label/first"))["tasks"]
    assert [ann.post("/label/first/answers", json=an_answer(first)).json()["is_new"] for _ in range(2)] == [True, False]
    close(find_queue(home, "first"), home / "p.jsonl")
    late = bob.post("/label/first/answers", json=an_answer(second))
    assert late.status_code == 409
    assert "closed: your answer is kept" in late.json()["error"]
    assert second["task_id"] in answers_of(find_queue(home, "first"), "bob")


@pytest.mark.parametrize(("body", "status", "told"), [
    (b"{", 400, "an answer is JSON"), (b"[]", 400, "an answer is an object"),
    (b"x" * 1_000_001, 413, "over 1,000,000 bytes"),
    (json.dumps({"task_id": "t9"}).encode(), 400, "task 't9' is not in queue first"),
    (json.dumps({"queue": "second", "task_id": "t0001"}).encode(), 400, "was sent to first"),
])  # fmt: skip
def test_what_is_no_answer_is_told_and_costs_nothing(home, body, status, told):
    answer = opened(home).post("/label/first/answers", content=body)
    assert answer.status_code == status
    assert told in answer.json()["error"]
    assert not file_of(find_queue(home, "first"), "ann").exists()


def test_a_queue_that_is_gone_and_a_task_that_is_not_there_are_told(home):
    ann = opened(home)
    assert "has no task 't9'" in ann.get("/label/first/tasks/t9").json()["error"]
    (home / "labels" / "first").rename(home / "labels" / "gone")
    gone = ann.get("/label/first")
    assert (gone.status_code, gone.text) == (404, "there is no such queue, or no more; ask whoever gave you the link\n")
    owner = browser(home, token=TOKEN)
    missing = owner.get("/labels/first")
    assert missing.status_code == 404
    assert "queue first: there is no such queue, or no more; there are:" in missing.text


def test_people_who_answer_at_once_all_have_their_answers(tmp_path):
    queue = make_queue(tmp_path, "first", some_tasks(40), {**SETTINGS, "annotators": 2})
    people = ["ann", "bob", "eve"]
    queue.invite(people)

    def work(who):
        own, confirmed = opened(tmp_path, who), set()
        while tasks := own.get("/label/first/tasks").json()["tasks"]:
            told = own.post(
                "/label/first/answers", json=an_answer(tasks[0], answer_id=f"{who}-{tasks[0]['task_id']}-x")
            )
            assert told.json()["is_new"]
            confirmed.add((who, tasks[0]["task_id"]))
        return confirmed

    with ThreadPoolExecutor(3) as pool:
        confirmed = set().union(*pool.map(work, people))
    stored = {(who, task_id) for who, own in all_answers(queue).items() for task_id in own}
    assert stored == confirmed
    for task_id in queue.tasks:
        # Two are wanted; more only of those that several people had before them at the same time.
        assert sum(pair[1] == task_id for pair in stored) >= 2
    assert len(stored) <= 2 * 40 + 10


# What the owner sees


def test_the_owner_sees_queues_people_and_their_links(home):
    ann = opened(home)
    (task, *_) = facts_of(ann.get("/label/first"))["tasks"]
    ann.post("/label/first/answers", json=an_answer(task, note=HOSTILE))
    owner = browser(home, token=TOKEN)
    assert "1 of 3" in owner.get("/labels").text
    page = owner.get("/labels/first").text
    for who, token in find_queue(home, "first").people().items():
        assert f"/label/first?token={token}" in page, who
    assert "<script>alert" not in page
    assert owner.get("/json/labels/first").json()["annotators"][0]["answered"] == 1


def test_the_owner_makes_a_queue_and_invites_somebody_on_a_page(tmp_path):
    config = fake_runs.document(tmp_path)
    fake_runs.finished_run(tmp_path, "done", config)
    owner = browser(tmp_path, token=TOKEN)
    refused = owner.post("/labels", content="run=done&by=random")
    # Both responses of this run's prompts are the same in all iterations.
    assert refused.status_code == 400
    assert "no prompt has two different responses" in refused.text
    for form, told in (
        ("run=none", "none: there is no such run"), ("run=done&prompts=x", "prompts=x: not a whole number"),
        ("run=done&by=luck", "by=luck: not one of"), ("run=done&candidates=1", "from 2 to 9"),
    ):  # fmt: skip
        assert told in owner.post("/labels", content=form).text
    make_queue(tmp_path, "mine", some_tasks(), SETTINGS)
    assert owner.post("/labels/mine/people", content="name=ann").headers["location"] == "/labels/mine"
    assert "give a name of letters" in owner.post("/labels/mine/people", content="name=%2e%2e/x").text
    assert [(queue.name, list(queue.people())) for queue in queues(tmp_path)] == [("mine", ["ann"])]
