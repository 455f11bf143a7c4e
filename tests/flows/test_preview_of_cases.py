"""What ``rounds check`` says of small inputs on which software of this kind went wrong; each makes its own model."""

import re
import shutil
import subprocess
import sys

import pytest
from shared_data import CASES, SHARED, needs_cases
from test_preview import InThisProcess, seen

from flows.config import read_document
from flows.preview import examination

# What is told of each; nothing where the input is fit for a run.
TOLD = {
    "01-eos-list": None,
    "09-lone-surrogate": r"data\.prompts\.0: prompts\.jsonl, row 7: prompt holds half of a character",
    "12-reward-none": r"rewards\.r: my_reward:score returned None for rollout",
    "15-repetition-penalty": None,
    "22-few-bad-rows": r"data\.preferences\.0: 5 of 200 rows cannot be used \(.*row 18: rejected is empty",
    "26-reward-model-without-template": r"rewards\.r\.model: prompt .* has no chat template",
    "37-longrope-boundary": r"data\.prompts\.0: 12 of 12 rows cannot be used .* the model's context is 24 \(beyond it",
}

QUICK = ("12-reward-none", "22-few-bad-rows", "26-reward-model-without-template")


@needs_cases
@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in TOLD]
)
def test_what_can_be_known_of_a_case_is_told_before_it_runs(case, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(SHARED)
    for name in ("common", case):
        ignored = shutil.ignore_patterns("model", "rm", "out", "__pycache__")
        shutil.copytree(CASES / name, tmp_path / "cases" / name, ignore=ignored)
    here = tmp_path / "cases" / case
    if (here / "make.py").exists():
        subprocess.run([sys.executable, "make.py"], cwd=here, check=True, capture_output=True)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    monkeypatch.setattr(examination, "Supervisor", InThisProcess)
    told = seen(tmp_path, read_document("case.yaml"), has_trial=case == "12-reward-none").mistakes
    sys.modules.pop("my_reward", None)
    if TOLD[case] is None:
        assert told == []
    else:
        (mistake,) = told
        assert re.match(TOLD[case], mistake), mistake
