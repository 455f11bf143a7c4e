"""The README says what is true: its example runs, and its glossary has every metric that a run logs."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

from tasks.metrics.rules import PER_ITERATION, PER_ROUND

OF_EXCLUSION = "advantages/excluded_share"
OF_OTHER_ENGINES = {
    "rollouts/engine_logprob_difference",
    "rollouts/engine_logprob_max_difference",
    "update/importance_mean",
    "update/importance_capped",
}
README = (ROOT / "README.md").read_text()


def glossary():
    """The names in the first column of the metric table, with what stands for a name of the user's as a pattern."""
    table = README.split("## Metrics")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return [re.compile(re.sub(r"<\w+>", r"\\w+", name)) for name in names if "/" in name]


def is_explained(name):
    # `…_stderr` stands for the standard error beside any metric, `…_std` for the standard deviation of the reference.
    name = name.removesuffix("_stderr")
    bare = name.removesuffix("_std") if name.startswith("evaluation/reference_") else name
    return any(pattern.fullmatch(bare) for pattern in glossary())


def test_every_metric_that_a_run_logs_is_in_the_glossary(home, tiny):
    logged = {name for manifest in home.stages(tiny).values() for name in manifest["metrics"]}
    assert len(logged) > 50
    assert sorted(name for name in logged if not is_explained(name)) == []


def test_every_metric_in_the_glossary_is_logged(home, tiny):
    logged = {name for manifest in home.stages(tiny).values() for name in manifest["metrics"]}
    logged |= {"seconds/warm_up", OF_EXCLUSION, *OF_OTHER_ENGINES}
    unused = [pattern.pattern for pattern in glossary() if not any(pattern.fullmatch(name) for name in logged)]
    assert unused == []


def warned_of():
    """The metrics whose row says where they warn."""
    table = README.split("## Metrics")[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows if "warns" in row[3] for name in re.findall(r"`([^`]+)`", row[1])}


def test_the_glossary_says_of_each_metric_that_warns_that_it_does():
    shown = {name for name in warned_of() if not name.startswith("evaluation/reference_") or "<reward>" in name}
    # Of its row of three, only one warns.
    assert shown - {"audit/distinct_1", "audit/distinct_3"} == {rule.metric for rule in (*PER_ITERATION, *PER_ROUND)}


@pytest.mark.parametrize("name", ["update/entropi", "score/", "kl/total"])
def test_a_name_that_is_not_in_the_glossary_is_noticed(name):
    assert not is_explained(name)


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
