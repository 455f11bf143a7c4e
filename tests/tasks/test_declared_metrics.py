"""Every metric is declared, and whoever names one names a declared one."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from flows.orchestration.round_page import COLUMNS
from flows.terminal.display import GAIN, ITERATION_LINE
from ppo_core import UpdateStats
from tasks.contract import StageOutput
from tasks.metrics.declared.glossary import GLOSSARY, LOGGED_BY, combination, declaration, declared, named
from tasks.metrics.declared.metric import BY_ROWS, Limit, Metric, Range, Warns
from tasks.metrics.declared.table import cells, glossary_text
from tasks.metrics.rules import PER_ITERATION, PER_ROUND
from tasks.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- metrics: begin -->\n", "\n<!-- metrics: end -->"
PREFIXES = {name.split("/")[0] for name in GLOSSARY}


def test_the_glossary_in_the_readme_is_the_one_that_is_declared():
    readme = (ROOT / "tasks/metrics/README.md").read_text()
    written = readme.partition(BEGIN)[2].partition(END)[0]
    assert written == glossary_text(), "put what `python -m tasks.metrics` prints between the two marks"


def test_it_is_printed_by_a_command():
    done = subprocess.run([sys.executable, "-m", "tasks.metrics"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == glossary_text() + "\n"


# Declarations


@pytest.mark.parametrize("metric", GLOSSARY.values(), ids=GLOSSARY)
def test_a_declaration_is_complete(metric):
    assert re.fullmatch(r"[a-z_]+/([a-z0-9_]|<reward>|<stage>)+", metric.name)
    assert metric.unit
    assert metric.meaning
    assert not metric.combines.beside or metric.combines.beside in GLOSSARY
    # Only then are the standard errors of parts those of a weighted sum.
    assert not metric.has_stderr or metric.combines == BY_ROWS
    assert str(metric.healthy) or not metric.advice


def test_each_name_is_declared_once():
    everything = [metric for own in LOGGED_BY.values() for metric in own]
    for metric in everything:
        assert GLOSSARY[metric.name] is metric


def test_each_stage_declares_what_it_logs():
    assert set(LOGGED_BY) == set(STAGES.names)


def test_what_an_update_reports_is_declared():
    names = [f"update/{field.name}" for field in fields(UpdateStats)]
    assert [name for name in names if declared(name) is None] == []


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("score/mean", "score/mean"),
        ("score/tone", "score/<reward>"),
        ("audit/tone", "audit/<reward>"),
        ("audit/tone_stderr", "audit/<reward>"),
        ("audit/tone_gap", "audit/<reward>_gap"),
        ("audit/tone_gap_stderr", "audit/<reward>_gap"),
        ("audit/length_correlation", "audit/length_correlation"),
        ("evaluation/reference_tone_std", "evaluation/reference_<reward>_std"),
        ("evaluation/reference_tone", "evaluation/reference_<reward>"),
        ("seconds/warm_up", "seconds/<stage>"),
    ],
)
def test_a_logged_name_is_that_of_the_declaration_that_says_most_of_it(name, of):
    assert declaration(name).name == of


@pytest.mark.parametrize("name", ["update/entropi", "score/", "kl/total", "update/entropy_stderr", "mean"])
def test_a_name_that_is_not_declared_is_noticed(name):
    assert declared(name) is None
    with pytest.raises(AssertionError, match=f"the metric {name} is declared nowhere"):
        StageOutput(rows=1, metrics={"update/entropy": 1.0, name: 1.0})


def test_the_scores_of_rewards_are_told_from_what_is_measured_of_all():
    names = ["score/mean", "score/std", "score/tone", "score/mean_length", "audit/tone", "round"]
    assert named("score/<reward>", names) == ["score/tone", "score/mean_length"]
    assert named("audit/<reward>", ["audit/tone_stderr", "audit/tone", "audit/tone_gain"]) == ["audit/tone"]


def test_a_metric_is_combined_with_what_lies_beside_it():
    assert combination("score/std").beside == "score/mean"
    assert combination("evaluation/reference_tone_std").beside == "evaluation/reference_tone"
    assert combination("audit/tone_stderr").way == "independent errors"


# The table


@pytest.mark.parametrize(
    ("healthy", "text"),
    [
        (Range(0.65, 0.9), "0.65 to 0.9"),
        (Range(-0.3, 0.3), "−0.3 to 0.3"),
        (Range(high=0.1), "below 0.1"),
        (Range(low=0.0, words="steady"), "above 0, steady"),
        (Range(words="rises"), "rises"),
        (Range(), ""),
    ],
)
def test_a_healthy_range_in_words(healthy, text):
    assert str(healthy) == text


@pytest.mark.parametrize(
    ("warns", "text"),
    [
        (Warns(above=Limit(0.0)), "above 0"),
        (Warns(above=Limit(0.05, of_reference=1.0)), "above the reference's + 0.05"),
        (
            Warns(below=Limit(of_reference=0.9), when="unless it is late"),
            "below 0.9 × the reference's, unless it is late",
        ),
        (Warns(when="when it falls"), "when it falls"),
    ],
)
def test_where_a_metric_warns_in_words(warns, text):
    assert str(warns) == text


def test_a_row_of_the_table():
    metric = Metric(
        "update/x",
        "nats",
        "max |x|",
        Range(high=1),
        "less of it",
        warns=Warns(above=Limit(2)),
        has_stderr=True,
    )
    assert cells(metric) == [
        "`update/x` ±",
        "nats",
        r"max \|x\|",
        "below 1; warns above 2",
        "less of it",
        "mean by rows",
    ]


# Whoever names a metric


def test_headlines_are_declared_metrics_of_their_stage():
    for stage in STAGES:
        own = {metric.name for metric in LOGGED_BY[stage.name]}
        assert {name for name, _, _ in stage.headlines} <= own


def test_the_columns_of_tables_are_declared_metrics():
    assert {*COLUMNS, GAIN, *(name for name, _, _ in ITERATION_LINE)} <= set(GLOSSARY)


def test_a_metric_is_declared_to_warn_where_a_rule_warns_of_it():
    rules = {rule.metric for rule in (*PER_ITERATION, *PER_ROUND)}
    assert rules == {name for name, metric in GLOSSARY.items() if metric.warns}


def names_in(path):
    """What looks like the name of a metric among the texts of a file; of a text with parts to fill in, nothing."""
    tree = ast.parse(path.read_text())
    filled_in = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in filled_in:
            prefix, slash, rest = node.value.partition("/")
            if slash and prefix in PREFIXES and re.fullmatch(r"[a-z0-9_<>]+", rest):
                yield node.value


PRODUCT = [path for room in ("flows", "tasks") for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_metric_that_the_product_names_is_declared():
    found = {(str(path.relative_to(ROOT)), name) for path in PRODUCT for name in names_in(path)}
    of_charts = {name for path, name in found if path == "tasks/charts/of_run.py"}
    assert len(of_charts) > 7
    assert len(found) > 100
    assert sorted((path, name) for path, name in found if declared(name) is None) == []


def test_declarations_are_read_without_what_stages_compute_with():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "numpy", "pandas", "mlflow", "prefect", "pydantic"}
    code = f"import sys, tasks.metrics; sys.exit(', '.join({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == ""
