"""The pictures in the READMEs, made from a real run in headless Chromium.

python tests/pictures.py HOME RUN        writes flows/pages/pictures/*.png and flows/labels/pictures/*.png

The run gets a queue, which two people have answered in part.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from flows.labels.make import Wish, make_from_run
from flows.runs import find_run

FLOWS = Path(__file__).resolve().parents[1] / "flows"
PICTURES = FLOWS / "pages" / "pictures"
OF_LABELS = FLOWS / "labels" / "pictures"
PAGES = {
    "run": "/runs/{run}",
    "rollouts": "/runs/{run}/rollouts?q=sort:-score",
    "hacking": "/runs/{run}/hacking",
    "compare": "/compare?a={run}:1&b={run}:2",
}


def labels(page, base, home, run):
    """A task as an annotator sees it, and the queue as the owner does."""
    queue, _ = make_from_run(find_run(home, run), Wish(prompts=24, candidates=4, annotators=2))
    for who, token in queue.invite(["ann", "bob"]).items():
        page.goto(f"{base}/label/{queue.name}?token={token}")
        for number in range(12):
            # Both prefer what is shorter, and one of them does not look at every task.
            texts = page.locator(".card .whole").all_inner_texts()
            order = (
                sorted(range(len(texts)), key=lambda i: len(texts[i]))
                if who == "ann" or number % 3
                else range(len(texts))
            )
            for i in order[: 3 if number < 11 else 2]:
                page.keyboard.press("abcdefghi"[i])
            if number < 11:
                page.wait_for_timeout(300)
                page.keyboard.press("Enter")
        page.wait_for_timeout(800)
        page.screenshot(path=OF_LABELS / "task.png")
    page.goto(f"{base}/labels/{queue.name}")
    page.screenshot(path=OF_LABELS / "queue.png")


def main():
    home, run = sys.argv[1:]
    rounds = str(Path(sys.executable).with_name("rounds"))
    with subprocess.Popen([rounds, "--home", home, "ui", "--port", "0"], stdout=subprocess.PIPE, text=True) as ui:
        try:
            address = urlsplit(ui.stdout.readline().strip())
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 720})
                page.goto(f"http://{address.netloc}/?{address.query}")
                for name, path in PAGES.items():
                    page.goto(f"http://{address.netloc}{path.format(run=run)}")
                    if name == "rollouts":
                        page.keyboard.press("j")
                        page.locator(".pane .tokens").wait_for()
                    page.wait_for_timeout(800)
                    page.screenshot(path=PICTURES / f"{name}.png")
                labels(page, f"http://{address.netloc}", Path(home), run)
        finally:
            ui.terminate()


if __name__ == "__main__":
    main()
