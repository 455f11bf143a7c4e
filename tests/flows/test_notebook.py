"""The notebook that shows how a run is looked at in Python."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "look.ipynb"


@pytest.fixture(scope="module")
def executed(looked_at, tmp_path_factory):
    """The notebook's cells of code, as they come out over a real run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROUNDS_HOME", str(looked_at))
        where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
        notebook = NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=120, resources=where).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell, kind):
    return "".join(output.data[kind] for output in cell.outputs if kind in output.get("data", {}))


def test_every_cell_shows_something(executed):
    assert all(cell.outputs and cell.outputs[-1].output_type == "execute_result" for cell in executed)


def test_a_run_shows_its_state_its_results_and_a_line_of_its_scores(executed):
    text = shown(executed[0], "text/html")
    assert "finished" in text
    assert "<svg" in text
    assert "<table" in text


def test_a_rollout_shows_its_tokens_on_colours(executed):
    assert "<span" in shown(executed[4], "text/html")
    assert "advantage" in shown(executed[5], "text/plain")


def test_a_score_is_a_number(executed):
    assert float(shown(executed[-1], "text/plain").strip("[]")) == pytest.approx(0, abs=50)


def test_no_output_is_kept_in_the_repository():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
