"""People answer in a real browser: by keyboard, by mouse, without a connection, and after they closed the page."""

import pytest
from browsers import CHROMIUM, in_browser, served_home, there, until

from flows.labels import LabelTask, answers_of, make_queue
from flows.labels.make import Wish, make_from_run
from flows.runs import find_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")
SETTINGS = {"run": "mine", "by": "random", "candidates": 3, "annotators": 1, "seed": 0}
TEXTS = ("the lamp is red", "the lamp is blue", "the lamp is <b>old</b>\u202e")


def a_queue(home, number=3, texts=TEXTS, name="q"):
    ids = tuple(f"r1.i1.s0.p.{i}" for i in range(len(texts)))
    tasks = [
        LabelTask(task_id=f"t{i:04d}", prompt=f"What of lamp {i}?", responses=texts, rollout_ids=ids)
        for i in range(number)
    ]
    queue = make_queue(home, name, tasks, SETTINGS)
    return queue, queue.invite(["ann"])["ann"]


@pytest.fixture
def opened(tmp_path, browser, request):
    """``open(queue, token)``: the page of a person; no script may have an error on it."""
    mistakes, contexts = [], []
    with served_home(tmp_path) as address:

        def open_page(queue, token, context=None, **settings):
            if context is None:
                contexts.append(context := browser.new_context(viewport={"width": 1280, "height": 720}, **settings))
            page = context.new_page()
            page.on("pageerror", lambda error: mistakes.append(str(error)))
            page.goto(f"{address}/label/{queue.name}?token={token}")
            return page

        yield open_page
        for context in contexts:
            there(context.close)
    assert mistakes == []


def said(page):
    return page.locator("[data-said]").inner_text()


def count(page):
    return page.locator("[data-count]").inner_text()


def ranks_by_text(queue, who="ann"):
    """What was said of each response, task by task in the order of the answers."""
    return [dict(zip(answer.responses, answer.ranks, strict=True)) for answer in answers_of(queue, who).values()]


def letters_of(page, *texts):
    """The letters of the cards that begin so, as they stand on this page."""
    shown = [card.inner_text() for card in page.locator(".card .whole").all()]
    return ["abcdefghi"[next(i for i, text in enumerate(shown) if text.startswith(own))] for own in texts]


@in_browser
def test_a_ranking_by_letters_with_a_tie_and_what_is_left_comes_last(tmp_path, opened):
    queue, token = a_queue(tmp_path)
    page = opened(queue, token)
    assert page.locator(".turns").inner_text().startswith("What of lamp ")
    blue, red = letters_of(page, "the lamp is blue", "the lamp is red")
    page.keyboard.press("Enter")
    assert said(page).startswith("rank ")
    page.keyboard.press(blue)
    page.keyboard.press("=")
    page.keyboard.press(red)
    assert said(page) == f"{blue.upper()} = {red.upper()}"
    page.keyboard.press("Enter")
    until(page, "document.querySelector('[data-count]').textContent === '1 of 3'")
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    assert ranks_by_text(queue) == [{TEXTS[0]: 1, TEXTS[1]: 1, TEXTS[2]: 3}]


@in_browser
def test_a_mistake_is_taken_back_and_a_task_is_gone_back_to(tmp_path, opened):
    queue, token = a_queue(tmp_path)
    page = opened(queue, token)
    first = page.locator(".turns").inner_text()
    for key in ("a", "b", "Backspace", "Backspace", "c", "a", "Enter"):
        page.keyboard.press(key)
    second = page.locator(".turns").inner_text()
    assert second != first
    page.keyboard.press("u")
    until(page, "text => document.querySelector('[data-turns]').innerText === text", first)
    assert said(page) == "C > A > B"
    for key in ("Backspace", "Backspace", "Backspace", "b", "n"):
        page.keyboard.press(key)
    page.keyboard.type("abc it is")
    page.keyboard.press("Escape")
    for key in ("a", "c", "Enter"):
        page.keyboard.press(key)
    until(page, "text => document.querySelector('[data-turns]').innerText === text", second)
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    (answer,) = answers_of(queue, "ann").values()
    assert answer.note == "abc it is"
    assert [answer.ranks[i] for i in answer.shown] == [2, 1, 3]
    assert count(page) == "1 of 3"


@in_browser
def test_a_task_is_skipped_with_a_reason_and_all_is_done_in_the_end(tmp_path, opened):
    queue, token = a_queue(tmp_path, number=2)
    page = opened(queue, token)
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    assert count(page) == "0 of 2"
    page.keyboard.press("s")
    page.keyboard.press("3")
    for key in ("a", "b", "Enter"):
        page.keyboard.press(key)
    until(page, "!document.querySelector('[data-done]').hidden")
    assert "Nothing is left" in page.locator("[data-done]").inner_text()
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    skipped, ranked = answers_of(queue, "ann").values()
    assert (skipped.skipped, skipped.ranks, len(ranked.ranks)) == ("all responses are unusable", (), 3)


@in_browser
def test_of_two_the_arrows_say_which_and_shift_that_it_is_much_better(tmp_path, opened):
    queue, token = a_queue(tmp_path, texts=TEXTS[:2])
    page = opened(queue, token)
    for keys in (("Shift+ArrowRight", "Enter"), ("ArrowLeft", "Enter"), ("ArrowDown", "Enter")):
        for key in keys:
            page.keyboard.press(key)
    until(page, "!document.querySelector('[data-done]').hidden")
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    answers = list(answers_of(queue, "ann").values())
    assert [[answer.ranks[i] for i in answer.shown] for answer in answers] == [[2, 1], [1, 2], [1, 1]]
    assert [answer.margin for answer in answers] == ["much", "", ""]


@in_browser
def test_by_mouse_alone(tmp_path, opened):
    queue, token = a_queue(tmp_path, number=1)
    page = opened(queue, token)
    page.locator(".card button").nth(2).click()
    page.locator(".card button").nth(0).click()
    page.get_by_role("button", name="save, next").click()
    until(page, "!document.querySelector('[data-done]').hidden")
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    (answer,) = answers_of(queue, "ann").values()
    assert [answer.ranks[i] for i in answer.shown] == [2, 3, 1]
    assert answer.seconds > 0


@in_browser
def test_without_a_connection_answers_wait_in_the_browser_also_over_a_closed_page(tmp_path, opened):
    queue, token = a_queue(tmp_path)
    page = opened(queue, token)
    page.context.set_offline(True)
    for key in ("a", "b", "Enter"):
        page.keyboard.press(key)
    until(page, "document.querySelector('[data-unsent]').textContent.startsWith('1 not sent yet')")
    assert count(page) == "1 of 3"
    for key in ("c", "b", "Enter"):
        page.keyboard.press(key)
    assert answers_of(queue, "ann") == {}
    context = page.context
    page.close()
    context.set_offline(False)
    page = opened(queue, token, context)
    until(page, "document.querySelector('[data-count]').textContent === '2 of 3'")
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    assert len(answers_of(queue, "ann")) == 2
    assert page.locator(".turns").inner_text() not in {answer.prompt for answer in answers_of(queue, "ann").values()}


@in_browser
def test_an_answer_to_a_queue_that_is_gone_stays_in_the_browser_until_it_is_back(tmp_path, opened):
    queue, token = a_queue(tmp_path)
    page = opened(queue, token)
    away = queue.directory.rename(tmp_path / "away")
    for key in ("a", "b", "Enter"):
        page.keyboard.press(key)
    until(page, "document.querySelector('[data-mistake]').textContent.startsWith('the link is no longer valid')")
    assert page.locator("[data-unsent]").inner_text().startswith("1 not sent yet")
    away.rename(queue.directory)
    page.reload()
    until(page, "document.querySelector('[data-unsent]').textContent === ''")
    assert len(answers_of(queue, "ann")) == 1


@in_browser
def test_what_is_heard_and_reached_without_seeing_the_page(tmp_path, opened):
    queue, token = a_queue(tmp_path, number=1)
    page = opened(queue, token)
    assert page.evaluate("document.activeElement.textContent") == "Rank 3 responses, A, B, C"
    assert page.locator("[data-said]").get_attribute("aria-live") == "polite"
    names = [page.locator(".card button").nth(i).get_attribute("aria-label") for i in range(3)]
    assert names == [f"Response {letter}: rank it next" for letter in "ABC"]
    # The keys of a button do what the button says, and do not save.
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert said(page) == "A"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button')].filter(b => !b.textContent.trim() && !b.ariaLabel).length"
    )
    assert unnamed == 0


@in_browser
def test_differences_are_marked_and_markup_of_a_model_is_text(tmp_path, opened):
    queue, token = a_queue(tmp_path, number=1)
    page = opened(queue, token)
    assert page.locator(".card b").count() == 0
    assert page.locator(".shared").first.inner_text() == "the lamp is "
    page.keyboard.press("w")
    (red,) = letters_of(page, "the lamp is red")
    assert page.locator(".card .pieces").nth("abc".index(red)).locator("mark").all_inner_texts()[-1].strip() == "red"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@in_browser
def test_a_real_run_is_asked_about_in_dark_on_a_small_screen(looked_at, browser):
    queue, _ = make_from_run(find_run(looked_at, "tiny"), Wish(prompts=3, candidates=3), name="of-tiny")
    token = queue.invite(["ann"])["ann"]
    with served_home(looked_at) as address:
        page = browser.new_page(viewport={"width": 420, "height": 800}, color_scheme="dark")
        page.goto(f"{address}/label/of-tiny?token={token}")
        assert page.locator(".card").count() >= 2
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for key in ("b", "a", "c", "Enter"):
            page.keyboard.press(key)
        until(page, "document.querySelector('[data-count]').textContent.startsWith('1 of')")
        until(page, "document.querySelector('[data-unsent]').textContent === ''")
        page.close()
    assert len(answers_of(queue, "ann")) == 1
