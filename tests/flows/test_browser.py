"""The pages over a real run, in a real browser, as people use them: by keyboard, in light and dark, on a small screen."""

import re

import fake_runs
import pytest
from browsers import CHROMIUM, TOKEN, in_browser, served_home, there, until

from flows.pages.bundle import write_bundle
from flows.pages.report import write_report
from flows.pages.site import Site
from flows.runs import find_run

PAGES_OF_A_RUN = ("", "/rollouts", "/rollouts?data=evaluation", "/hacking", "/reward-model", "/data")
ALL_DRAWN = "document.querySelectorAll('.chart').length === document.querySelectorAll('[data-drawn]').length"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")


@pytest.fixture(scope="session")
def address(looked_at):
    """Where the pages of a home with one real run are served."""
    with served_home(looked_at) as address:
        yield address


# Colours show in what is drawn, and in nothing that a key does.
LIGHT_AND_DARK = pytest.mark.parametrize("page", ["light", "dark"], indirect=True)


@pytest.fixture
def page(request, address, browser):
    """A window of 1280 × 720 at the list of runs, which must come without an error of any script."""
    mistakes = []

    def opened():
        window = browser.new_context(
            viewport={"width": 1280, "height": 720}, color_scheme=getattr(request, "param", "light")
        )
        page = window.new_page()
        page.on("console", lambda said: mistakes.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto(f"{address}/?token={TOKEN}")
        return page

    page = there(opened)
    yield page
    there(page.context.close)
    assert mistakes == []


@in_browser
def test_from_the_list_to_a_stage_by_keyboard_alone(page):
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/tiny")
    assert page.locator("h1").inner_text().startswith("tiny")
    page.locator("#stages .cell").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/stages/*")
    assert page.locator("h1").inner_text() == "prepare data"


@in_browser
def test_a_search_is_noted_by_keyboard_and_its_page_says_so(page, address):
    page.goto(f"{address}/runs/tiny/rollouts?q=length%3E0")
    page.keyboard.press("m")
    page.wait_for_url("**/notes?about=*")
    page.keyboard.type("long ones")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/tiny/rollouts?q=length%3E0")
    assert "note" in page.locator("a.note").inner_text()
    page.keyboard.press("m")
    page.wait_for_url("**/notes?about=*")
    page.locator("button:text('remove')").first.click()
    page.wait_for_url("**/notes?about=*")


@in_browser
def test_a_queue_is_made_by_a_form_and_somebody_invited(page, address):
    page.goto(f"{address}/labels")
    page.locator("form.make input[name=prompts]").fill("3")
    page.locator("form.make button").click()
    page.wait_for_url("**/labels/tiny-*")
    page.locator("input[name=name]").fill("ann")
    page.locator("form button").last.click()
    page.locator("text=ann").first.wait_for()


@in_browser
def test_keys_are_told_by_a_key(page):
    page.keyboard.press("?")
    told = page.locator("dialog[open]").inner_text()
    assert "next row" in told
    assert "all runs" in told
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


@in_browser
@LIGHT_AND_DARK
def test_nothing_is_wider_than_the_window_and_every_chart_is_drawn(page, address):
    places = ["/", "/schedules", "/compare?a=tiny:1&b=tiny:2", *(f"/runs/tiny{rest}" for rest in PAGES_OF_A_RUN)]
    for path in places:
        page.goto(address + path)
        assert page.locator("h1, table.rollouts").count() > 0, path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        until(page, ALL_DRAWN)


@in_browser
def test_a_point_of_a_chart_leads_to_the_rollouts_of_its_iteration(page, address):
    page.goto(f"{address}/runs/tiny")
    page.locator("#chart-reward [data-drawn]").wait_for()
    # The first point of the last line.
    page.locator("#chart-reward .scatterlayer .trace").last.locator(".points path").first.click(force=True)
    page.wait_for_url("**/runs/tiny/rollouts?round=1&iteration=1")


@in_browser
def test_rollouts_are_read_by_keyboard_alone(page, address):
    page.goto(f"{address}/runs/tiny/rollouts?round=1&iteration=1")
    page.keyboard.press("/")
    page.keyboard.type("sort:-score")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=sort%3A-score**")
    page.keyboard.press("j")
    page.locator(".pane .tokens").wait_for()
    first = page.locator("tr.chosen").get_attribute("data-id")
    assert f"open={first}" in page.url
    page.keyboard.press("j")
    until(page, "id => document.querySelector('.pane article').dataset.rollout !== id", first)
    page.keyboard.press("6")
    page.locator(".pane .tints [aria-current]", has_text="logprob").wait_for()
    # The colour stays while one rollout after the other is opened.
    page.keyboard.press("j")
    page.keyboard.press("k")
    until(
        page,
        "document.querySelector('.pane article').dataset.rollout === document.querySelector('tr.chosen').dataset.id",
    )
    assert "logprob" in page.locator(".pane .tints [aria-current]").inner_text()
    # What is seen is in the address: a colleague who opens it sees the same.
    second = page.locator("tr.chosen").get_attribute("data-id")
    page.reload()
    page.locator(f".pane article[data-rollout='{second}']").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/rollouts/{second}**")
    page.keyboard.press("3")
    page.wait_for_url("**tint=reward**")
    page.keyboard.press("t")
    page.wait_for_url("**tint=value**")
    # The search goes on from rollout to rollout, and back to its table.
    page.keyboard.press("k")
    page.wait_for_url(f"**/rollouts/{first}?**tint=value**")
    page.keyboard.press("u")
    page.locator(f".pane article[data-rollout='{first}']").wait_for()
    assert page.locator("[data-search]").input_value() == "sort:-score"


@in_browser
def test_dragging_over_a_histogram_filters(page, address):
    page.goto(f"{address}/runs/tiny/rollouts?round=all&iteration=all")
    drag(page, "score", 0.2, 0.8)
    page.wait_for_url("**score%3E%3D**score%3C**")
    assert "column=" not in page.url
    assert page.locator(".chip").count() == 2
    found, total = (int(text) for text in re.findall(r"\d+", page.locator(".count").inner_text())[:2])
    assert 0 < found < total
    # Up to the end of the histogram is up to whatever there is, and takes the place of the range before.
    drag(page, "score", 0.5, 1.0)
    page.wait_for_url(lambda url: "score%3E%3D" in url and "score%3C" not in url)
    assert page.locator(".chip").count() == 1
    assert page.locator("svg .mark").count() == 1
    page.locator(".chip").click()
    page.wait_for_url(lambda url: "score" not in url)
    assert page.locator(".chip").count() == 0


def drag(page, column, start, end):
    """Over the histogram of a column, from one share of its width to another."""
    box = page.locator(f".lies[data-column={column}]").bounding_box()
    page.mouse.move(box["x"] + box["width"] * start, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end, box["y"] + 5)
    page.mouse.up()


@in_browser
def test_a_range_is_set_by_keyboard(page, address):
    page.goto(f"{address}/runs/tiny/rollouts?round=all&iteration=all")
    page.keyboard.press("f")
    until(page, "document.activeElement.name === 'column'")
    page.keyboard.type("length")
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    page.keyboard.press("Tab")
    page.keyboard.type("1000")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=length%3E%3D2+length%3C1000")
    assert page.locator(".chip").count() == 2
    # The heads of the columns stay in view.
    page.keyboard.press("G")
    until(page, "document.querySelector('thead th').getBoundingClientRect().top >= 0")
    assert page.locator("thead .lies").first.is_visible()


@in_browser
def test_a_mistaken_search_is_told_on_the_page(page, address):
    page.goto(f"{address}/runs/tiny/rollouts?q=sort:-score")
    page.locator("[data-search]").fill("nope<3")
    page.keyboard.press("Enter")
    page.locator("[role=alert]").wait_for()
    assert "no such column" in page.locator("[role=alert]").inner_text()
    assert page.locator("[data-search]").input_value() == "nope<3"
    # What was found before is still there.
    assert page.locator(".chip").inner_text() == "sort:-score ×"


@in_browser
def test_two_runs_are_ticked_and_places_compared_by_keyboard(page, address):
    page.goto(f"{address}/compare?a=tiny:1&b=tiny:2")
    page.keyboard.press("w")
    assert page.locator(".words").first.is_visible()
    page.keyboard.press("s")
    page.wait_for_url("**a=tiny%3A2&b=tiny%3A1")


@in_browser
@LIGHT_AND_DARK
def test_a_report_and_a_bundle_are_read_without_a_server(page, looked_at, tmp_path):
    run = find_run(looked_at, "tiny")
    write_report(run, tmp_path / "report.html", rollouts=8)
    write_bundle(Site(homes=(looked_at,)), "tiny", tmp_path / "bundle", rollouts=2)
    page.context.set_offline(True)
    page.goto(f"file://{tmp_path}/report.html")
    until(page, ALL_DRAWN)
    rows = page.locator("[data-rollouts] tbody tr")
    scores = rows.evaluate_all("rows => rows.map((row) => Number(row.dataset.score))")
    page.locator("[data-sort]").select_option("score")
    assert rows.evaluate_all("rows => rows.map((row) => Number(row.dataset.score))") == sorted(scores, reverse=True)
    page.locator("[data-find]").fill("no such word at all")
    assert page.locator("[data-found]").inner_text() == f"0 of {len(scores)}"
    page.goto(f"file://{tmp_path}/bundle/index.html")
    page.locator(".views a", has_text="rollouts").click()
    page.locator("[data-row] [data-open]").first.click()
    page.locator(".tokens span").first.wait_for()


@in_browser
def test_the_page_of_another_origin_reads_nothing(page, address):
    """A page of another origin asks for a run's facts, with the browser's cookie as that would send it."""
    other = page.context.new_page()
    other.goto("data:text/html,<title>elsewhere</title>")
    read = """async (address) => {
        try { return (await fetch(address + '/json', {credentials: 'include', mode: 'no-cors'})).type }
        catch (error) { return 'refused' }
    }"""
    assert other.evaluate(read, address) in ("refused", "opaque")
    framed = other.evaluate(
        """(address) => new Promise((done) => {
            const frame = document.createElement('iframe');
            const text = () => frame.contentDocument?.body.innerText ?? 'unreadable';
            frame.onload = () => { try { done(text()) } catch { done('unreadable') } };
            frame.src = address;
            document.body.append(frame);
        })""",
        address,
    )
    assert "tiny" not in framed
    other.close()


@in_browser
def test_the_page_of_a_run_that_goes_on_follows_it(page, tmp_path):
    document = fake_runs.document(tmp_path)
    run = fake_runs.finished_run(tmp_path, "live", document, stop_before=("update_policy", 2, 1))
    with served_home(tmp_path) as address:
        with run.locked():
            page.goto(f"{address}/runs/live?token={TOKEN}")
            assert "running" in page.locator("h1").inner_text()
            assert page.locator(".cell.pending").count() > 0
            fake_runs.finished_run(tmp_path, "live", document)
            until(page, "document.querySelectorAll('.cell.pending').length === 0")
            until(page, ALL_DRAWN)
        # Nobody works on it any more: the page says so, and asks no longer.
        page.locator("h1 .state.finished").wait_for()
