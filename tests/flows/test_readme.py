"""The README says what is true: its example runs, and its commands exist."""

import re
import subprocess
import sys

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_example_of_the_mathematics_runs():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ppo_core" in block)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_every_command_that_is_shown_exists(home):
    known = home.rounds("--help").stdout.split("Commands:")[1]
    shown = set(
        re.findall(r"rounds ([a-z]+)\b(?=[ \n`])", "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)))
    )
    assert shown
    assert {command for command in shown if not re.search(rf"^  {command} ", known, re.MULTILINE)} == set()
