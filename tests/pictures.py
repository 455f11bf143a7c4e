"""The pictures in the READMEs, made from a real run in headless Chromium.

python tests/pictures.py HOME RUN        writes flows/pages/pictures/*.png
"""

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().parents[1] / "flows" / "pages" / "pictures"
PAGES = {
    "run": "/runs/{run}",
    "rollouts": "/runs/{run}/rollouts?q=sort:-score",
    "hacking": "/runs/{run}/hacking",
    "compare": "/compare?a={run}:1&b={run}:2",
}


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
        finally:
            ui.terminate()


if __name__ == "__main__":
    main()
