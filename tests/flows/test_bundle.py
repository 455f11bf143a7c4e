"""The pages of a run as files that need no server."""

import re
from pathlib import Path

import fake_runs
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.pages.bundle import as_file, write_bundle
from flows.pages.site import Site
from tasks.errors import ConfigError

LINKS = re.compile(r'(?:href|src|data-points)="([^"]*)"')


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    document = fake_runs.document(home)
    fake_runs.finished_run(home, "done", document)
    fake_runs.finished_run(home, "secret", document)
    return home


@pytest.fixture(scope="module")
def bundle(home, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundle")
    assert write_bundle(Site(homes=(home,)), "done", directory, rollouts=1) == len(list(directory.glob("*.html")))
    return directory


def test_every_link_of_a_bundle_leads_to_a_file_of_it(bundle):
    links = [link for page in bundle.glob("*.html") for link in LINKS.findall(page.read_text())]
    assert len(links) > 100
    for link in links:
        name, _, fragment = link.partition("#")
        assert not link.startswith(("/", "http")), link
        assert not name or (bundle / name).is_file(), link
        assert name or fragment


def test_rollouts_of_a_bundle_lead_to_each_other(bundle):
    """From the table of all iterations, and from one answer to a prompt to those of other iterations."""
    table = (bundle / "rollouts-round-all-iteration-all.html").read_text()
    opened = re.findall(r'href="([^"]*)" data-open', table)
    assert len(opened) == 4
    for name in opened:
        answers = (bundle / name).read_text().partition('class="list answers"')[2]
        assert [link for link in LINKS.findall(answers) if link.startswith("rollout-")] == opened


def test_a_bundle_tells_of_no_other_run(bundle):
    assert not any("secret" in page.read_text() for page in bundle.glob("*.html"))


def test_every_output_of_the_run_has_a_page(home, bundle):
    outputs = {path.parent.name for path in (home / "runs" / "done" / "stages").rglob("manifest.json")}
    assert {page.stem.removeprefix("stage-") for page in bundle.glob("stage-*.html")} == outputs


def test_what_a_model_wrote_is_no_link():
    text = as_file(
        '<a href="/runs/x">&lt;a href=&#34;/runs/done&#34;&gt;</a><html lang="en">', "done", lambda *_: "x.html"
    )
    assert text == '<a data-left-out="">&lt;a href=&#34;/runs/done&#34;&gt;</a><html class="bundle" lang="en">'


def test_nothing_that_is_there_is_written_over(home, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already, and not empty; name another directory"):
        write_bundle(Site(homes=(home,)), "done", tmp_path, rollouts=1)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_the_command_says_where_to_begin(home, tmp_path):
    result = CliRunner().invoke(app, ["--home", str(home), "ui", "done", "--bundle", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert Path(result.stdout.split(" and ")[0]).is_file()
