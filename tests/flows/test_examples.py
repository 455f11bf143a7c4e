"""The examples of one's own: they run, and show what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_loop_of_one_s_own_learns_what_its_function_wants(capsys):
    runpy.run_path(str(EXAMPLES / "own_loop.py"))
    scores = [float(score) for score in re.findall(r"score (\S+),", capsys.readouterr().out)]
    assert len(scores) == 10
    # One of sixteen tokens is wanted, so that chance is 0.06.
    assert scores[0] < 0.1
    assert scores[-1] > 0.4


def test_a_stage_of_one_s_own_is_committed_and_found_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    example = runpy.run_path(str(EXAMPLES / "own_flow.py"))

    def stages_of():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "own-flow").rglob("manifest.json")}

    def told():
        return re.findall(r"penalise_sameness-r1\.i(\d): (reused|\{)", capsys.readouterr().out)

    example["main"](tmp_path)
    before = stages_of()
    assert told() == [("1", "{"), ("2", "{")]
    assert sum(path.parent.parent.name == "penalise_sameness" for path in before) == 2
    example["main"](tmp_path)
    assert told() == [("1", "reused"), ("2", "reused")]
    assert stages_of() == before
    # Another setting is another output, and what is made from it is made anew.
    example["main"](tmp_path, penalty=1.0)
    assert told()[0] == ("1", "{")
    new = [path.parent.parent.name for path in stages_of().keys() - before.keys()]
    assert {"penalise_sameness", "compute_advantages", "update_policy"} <= set(new)
    assert "prepare_data" not in new
