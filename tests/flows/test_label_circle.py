"""The whole circle: a finished round, people who rank its responses, and a round that follows what they prefer."""

import json

import pytest
import yaml
from browsers import CHROMIUM, served_home, there, until

import flows
from flows.config.reading import PRESETS
from flows.labels import answers_of, find_queue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium"),
]
TASKS = 60


def circle_config(path):
    """The quickstart with so few preferences that those of people outweigh them, and each prompt in each iteration."""
    document = yaml.safe_load((PRESETS / "quickstart.yaml").read_text())
    (first, _) = document["data"]["preferences"]
    first["arguments"] |= {"pairs": 60, "rankings": 5}
    document["data"] |= {
        "texts": [{"function": "flows.presets.quickstart:texts", "arguments": {"count": 4000}}],
        "preferences": [first],
        "prompts": [{"function": "flows.presets.quickstart:prompts", "arguments": {"count": 96}}],
        "num_held_out_prompts": 32,
    }
    document |= {"rounds": 1, "iterations": 6}
    document["rollouts"]["prompts_per_iteration"] = 64
    path.write_text(yaml.safe_dump(document))
    return path


def open_page(browser, address, queue, token):
    page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.goto(f"{address}/label/{queue}?token={token}")
    return page


def answer(page, number):
    """Rank the longer response before the shorter one, by keyboard, so many times or until nothing is left."""
    for _ in range(number):
        if page.locator("[data-task]").is_hidden():
            return
        before = page.locator("[data-count]").inner_text()
        lengths = [len(text) for text in page.locator(".card .whole").all_inner_texts()]
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            page.keyboard.press("abcdefghi"[i])
        page.keyboard.press("Enter")
        until(page, "before => document.querySelector('[data-count]').textContent !== before", before)
    until(page, "document.querySelector('[data-unsent]').textContent === ''")


def test_a_round_follows_what_people_prefer(home, browser, tmp_path):
    home.rounds("run", circle_config(tmp_path / "circle.yaml"))
    home.rounds("label", "make", "circle", "--prompts", TASKS, "--candidates", 4, "--annotators", 2, "--by", "random")
    home.rounds("label", "invite", "circle-1", "ann", "bob")
    tokens = find_queue(home.path, "circle-1").people()

    def work():
        pages = {who: open_page(browser, address, "circle-1", token) for who, token in tokens.items()}
        answer(pages["bob"], 20)
        # One closes the page in the middle, and comes back to what is left.
        pages["bob"].context.close()
        answer(pages["ann"], 2 * TASKS)
        back = open_page(browser, address, "circle-1", tokens["bob"])
        assert back.locator("[data-count]").inner_text().startswith("20 of ")
        answer(back, 2 * TASKS)
        assert not back.locator("[data-done]").is_hidden()
        for page in (pages["ann"], back):
            page.context.close()

    with served_home(home.path) as address:
        there(work)
    queue = find_queue(home.path, "circle-1")
    assert [len(answers_of(queue, who)) for who in tokens] == [len(queue.tasks)] * 2
    facts = json.loads(home.rounds("label", "status", "circle-1", "--json").stdout)
    # Of some prompts all responses say the same.
    assert TASKS // 2 < facts["tasks"] == facts["complete"]
    # They order responses of one length by where they stand.
    assert facts["alpha"] > 0.9
    preferences = tmp_path / "longer.jsonl"
    home.rounds("label", "close", "circle-1", "--into", preferences)
    before = home.digests("circle")
    home.rounds("add-round", "circle", "--preferences", preferences)
    # Nothing before it was made again.
    assert {name: digest for name, digest in home.digests("circle").items() if "round-001" in name} == before
    metrics = flows.open("circle", home=home.path).metrics().set_index(["round", "iteration"])
    lengths = metrics["rollouts/response_length"]
    # Before, the policy had learned to say little.
    assert lengths[1, 6] < lengths[1, 1]
    assert lengths[2, 6] > 1.2 * lengths[1, 6]
