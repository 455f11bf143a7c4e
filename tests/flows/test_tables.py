"""What a terminal of 80 and of 200 columns shows: every number whole, every row on its line."""

import json
import re
import threading
import time

import pyarrow.parquet as pq
import pytest
from fake_runs import HOSTILE, document, finished_run
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from flows.analysis.compare import compared
from flows.analysis.explain import Figures, explanation_of, figures_of
from flows.analysis.sides import side_of
from flows.cli import main as cli
from flows.outcomes import (
    Overview,
    StageStatus,
    Step,
    result_columns,
    standing_of,
)
from flows.plan import Attempt
from flows.query import LATEST, Query, one_rollout, parse, select, written
from flows.runs import find_run
from flows.terminal import logs, watch
from flows.terminal.tables import MOST_LISTED, Column, Hidden, Table, View, folded, numbers
from flows.terminal.views.compare import comparison_view, explanation_view, sparkline
from flows.terminal.views.rollouts import rollout_view, rows_table, wide_view
from flows.terminal.views.runs import attempts_table, results_table, runs_table, signed, steps_table
from flows.terminal.views.status import status_view
from tasks.errors import ConfigError
from tasks.metrics.declared import GLOSSARY
from tasks.store import Manifest


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    finished_run(home, "fake", document(home))
    return home


@pytest.fixture
def run(home):
    return find_run(home, "fake")


@pytest.fixture
def rounds(home):
    def call(*args, code=0):
        result = CliRunner().invoke(cli.app, ["--home", str(home), *map(str, args)])
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    return call


def shown(renderable, width=80, **options):
    console = Console(width=width, force_terminal=False, **options)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


# Tables


def made(*rows):
    table = Table(
        columns=[
            Column(title="name"),
            *numbers("first", drop=2),
            *numbers("second", drop=1),
            *numbers("third"),
            Column(title="text", is_text=True),
        ]
    )
    for row in rows:
        table.add_row(*row)
    return table


def test_a_table_with_room_shows_all():
    text = shown(made(("a", "1.5", "22.5", "3", "some words")))
    assert text.splitlines()[0].split() == ["name", "first", "second", "third", "text"]
    assert text.splitlines()[2].rstrip() == "a        1.5     22.5       3   some words"
    assert "no room" not in text


def test_where_there_is_little_room_texts_are_cut_and_then_columns_go_the_least_important_first():
    long = made(("a", "1,234.567", "22.5", "3", "word " * 30))
    assert re.search(r"1,234\.567 +22\.5 +3 +word .*wor…$", shown(long, 70), re.MULTILINE)
    narrow = shown(long, 50)
    assert "1,234" not in narrow
    assert "22.5" in narrow
    assert " ".join(narrow.split()).endswith("no room for: first; a wider terminal shows them, --json all")
    assert re.search(r"no room for: first, second;", shown(long, 38))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_broken_and_no_number_cut(width):
    table = made(*[(f"n{i}", f"{i}.123", f"{i},000.5", f"{i}7", "猫 and a dog " * i) for i in range(20)])
    lines = shown(table, width).splitlines()
    rows = [line for line in lines if line.startswith("n") and not line.startswith(("name", "no room"))]
    assert len(rows) == 20
    assert all(cell_len(line) <= max(width, 37) for line in rows)
    for i, line in enumerate(rows):
        assert {f"{i}.123", f"{i},000.5", f"{i}7"} & {*line.split()} >= {f"{i}7"}
        assert re.search(r"\d…", line) is None


def test_a_list_is_cut_between_its_parts():
    table = Table(columns=[Column(title="n"), Column(title="result", is_list=True)])
    table.add_row("a" * 30, "accuracy 0.809, loss 1.2345, KL 3.5")
    assert "   accuracy 0.809, loss 1.2345, …" in shown(table, 66)
    assert "accuracy 0.809, …" in shown(table, 57)
    assert "KL 3.5" in shown(table, 80)


def test_a_line_across_stands_between_the_rows_in_the_same_columns():
    table = made(("a", "1", "2", "3", "x"))
    table.add_line("… 37 more, score 0.1 → 0.3")
    table.add_row("longer", "1,000", "2", "3", "x")
    _, _, first, line, last = shown(table).splitlines()
    assert line == "… 37 more, score 0.1 → 0.3"
    assert first.rstrip().rindex("x") == last.rstrip().rindex("x")


def test_a_column_that_says_nothing_is_no_loss():
    assert "no room" not in shown(made(("a", "", "", "3", "x")), 200)
    assert "first" not in shown(made(("a", "", "", "3", "x")), 200)


def test_what_several_tables_leave_out_is_told_once_at_the_end():
    tables = [made(("a", "1,234.567", "22.5", "3", "word " * 30)) for _ in range(2)]
    assert shown(View(tables), 50).count("no room for: first") == 1


def test_a_text_that_wraps_is_all_there():
    table = Table(columns=[Column(title="setting"), Column(title="value", wraps=True, least=10)])
    table.add_row("a" * 30, "flows.presets.quickstart:prompts")
    text = shown(table, 50)
    assert "…" not in text
    assert "".join(line[32:].strip() for line in text.splitlines()[2:]) == "flows.presets.quickstart:prompts"


def test_markup_and_escapes_in_a_cell_are_text():
    table = Table(columns=[Column(title="[red]x[/red]")])
    table.add_row("[bold]y[/bold]")
    assert "[red]x[/red]" in shown(table)
    assert "[bold]y[/bold]" in shown(table)


@pytest.mark.parametrize(
    ("number", "whole", "hidden"), [(50, False, 0), (51, False, 26), (1000, False, 975), (1000, True, 0)]
)
def test_long_lists_are_folded_in_the_middle(number, whole, hidden):
    found = folded(range(number), whole=whole)
    middle = [item for item in found if isinstance(item, Hidden)]
    assert sum(len(item.items) for item in middle) == hidden
    flat = [own for item in found for own in (item.items if isinstance(item, Hidden) else [item])]
    assert flat == list(range(number))


@pytest.mark.parametrize("most", range(4, MOST_LISTED))
def test_a_fold_takes_no_more_lines_than_there_are(most):
    assert len(folded(range(100), most=most)) <= most


# Every table of a command


def statuses(num_iterations):
    """A round as it stands in the store."""
    found = [StageStatus(stage="prepare_data", round=1, iteration=0, shards=1)]
    for iteration in range(1, num_iterations + 1):
        for stage in ("generate_rollouts", "score_rollouts", "compute_advantages", "update_policy", "audit_rollouts"):
            metrics = {
                "score_rollouts": {"score/mean": -1234.5 + iteration},
                "compute_advantages": {"kl/mean": 12.345},
                "generate_rollouts": {"rollouts/response_length": 1024.5},
                "update_policy": {"update/entropy": 1.25},
            }.get(stage, {})
            found.append(
                StageStatus(
                    stage=stage,
                    round=1,
                    iteration=iteration,
                    shards=1,
                    committed=1,
                    rows=200_000,
                    seconds=3700.5,
                    parts=[(200_000, metrics)],
                )
            )
    return found


def views(run):
    """What each command shows, of numbers as wide as they get."""
    overviews = [
        Overview(
            name="a-run-with-a-name-of-thirty-two-ch",
            state="finished",
            rounds_done=10,
            rounds=12,
            created_at=0.0,
            score=-1234.567,
            score_gain=-12.34,
            warnings=12,
        )
    ]
    standing = standing_of(run)
    attempt = Attempt(
        id="0123abcd",
        stage="compute_advantages",
        place="r10.i100",
        committed_at=0.0,
        rows=200_000,
        seconds=3700.0,
        is_current=False,
        differs="kl_coef: 0.05 → 0.5, " * 5,
    )
    reason = "input data changed, " * 5
    step = Step(stage="train_reward_model", place="r10", executes=True, reason=reason, expected_seconds=3700)
    rows = select(run).data_set.search()
    find = lambda name: run  # noqa: E731
    found = compared(side_of("1.1", find), side_of("2.2", find))
    return {
        "list": runs_table(overviews),
        "status": status_view([*statuses(8), *standing.stages]),
        "results": results_table(result_columns(run.config), standing.results),
        "attempts": attempts_table([attempt] * 3),
        "steps": steps_table([step] * 3),
        "rollouts": rows_table(rows),
        "show": rollout_view(one_rollout(run, "r1.i1.s0.aa.0")),
        "compare": comparison_view(found, found.pairs()),
        "watch": watch.watch_view(run, standing, LATEST, height=24),
    }


TABLES = ["list", "status", "results", "attempts", "steps", "rollouts", "show", "compare", "watch"]


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_fits_its_terminal_and_cuts_no_number(run, name, width):
    text = shown(views(run)[name], width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert re.search(r"\d…", text) is None
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["list", "status", "results", "attempts", "steps", "show"])
def test_a_narrow_terminal_has_as_many_rows_as_a_wide_one(run, name):
    narrow, wide = (shown(views(run)[name], width).partition("no room for")[0].splitlines() for width in (80, 200))
    assert len(narrow) == len(wide)
    if name == "status":
        assert "compute" in wide[4] or any("compute" in line for line in wide)
        assert not any("compute" in line for line in narrow if line.startswith("iteration"))


def test_a_terminal_of_200_columns_shows_every_column(run):
    for name, view in views(run).items():
        assert "no room for" not in shown(view, 200), name


def test_more_than_50_iterations_are_one_line_in_their_middle():
    text = shown(status_view(statuses(60)), 200)
    lines = [line.strip() for line in text.splitlines()]
    went = "score -1,228.500 → -1,194.500, KL 12.345 → 12.345, length 1,024.5 → 1,024.5, entropy 1.250 → 1.250"
    assert f"… 35 more, {went}" in lines
    shown_numbers = [int(line.split()[0]) for line in lines if re.match(r"\d", line) and "stages" not in line]
    assert shown_numbers == [*range(1, 6), *range(41, 61)]
    whole = shown(status_view(statuses(60), whole=True), 200)
    assert "…" not in whole
    assert len(re.findall(r"^ +\d+ +200,000 ", whole, re.MULTILINE)) == 60


def test_of_a_long_round_what_is_still_to_come_is_a_few_lines():
    pending = [StageStatus(stage="generate_rollouts", round=1, iteration=i, shards=1) for i in range(31, 1001)]
    text = shown(status_view([*statuses(30), *pending]), 200)
    assert re.findall(r"^ *(\d+) +200,000", text, re.MULTILINE) == [str(i) for i in range(1, 31)]
    assert "… 967 more, pending" in text


# Colours


def test_colours_mean_something_and_are_left_away_where_they_are_not_wanted(run, monkeypatch):
    options = {"force_terminal": True, "color_system": "standard", "width": 200}

    def colored(view, **more):
        console = Console(**{**options, **more})
        with console.capture() as capture:
            console.print(view)
        return capture.get()

    table = views(run)["list"]
    assert "\x1b[32mfinished" in colored(table)
    assert "\x1b[3" not in colored(table, no_color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in colored(table)
    assert [signed(value, more_is_better=True).style for value in (1.0, -1.0, 0.0001, None)] == ["green", "red", "", ""]
    assert signed(1.0, more_is_better=False).style == "red"
    assert [signed(value).plain for value in (1.0, -1.0, 0.0001, None)] == ["+1.000", "-1.000", "0.000", "–"]


# Comparisons


def test_words_that_differ_are_marked_by_brackets_where_there_are_no_colours(run, monkeypatch):
    find = lambda name: run  # noqa: E731
    found = compared(side_of("1.1", find), side_of("2.2", find))
    words = [("same", "a"), ("a", " b"), ("b", f" {HOSTILE}")]
    monkeypatch.setattr("flows.analysis.joined.word_differences", lambda a, b: words)
    text = shown(comparison_view(found, found.pairs(0, 1)), 200)
    assert "A a [-b-]  (r1.i1.s0.aa.0)" in text
    assert "B a {+[red]good[/red]\\x1b[2J⏎ dog+}  (r2.i2.s0.aa.0)" in text
    colored = shown(comparison_view(found, found.pairs(0, 1)), 200, color_system="standard")
    assert "{+" not in colored


def test_compare_diff_and_explain_are_commands(rounds):
    text = rounds("compare", "1.1", "fake:2.2").stdout
    assert "A  fake, round 1, iteration 1 (2 responses to 2 prompts)" in text
    assert re.search(r"^true_quality \(held out\) +4\.500 +4\.500 +0\.000", text, re.MULTILINE)
    found = json.loads(rounds("compare", "1.1", "2.2", "--top", 1, "--json").stdout)
    assert (found["prompts"], len(found["pairs"])) == (2, 1)
    assert "not a place; write RUN" in rounds("compare", "fake:x.y", "fake", code=2).stderr
    assert "--sort nope: no such number" in rounds("compare", "1.1", "2.2", "--sort", "nope", code=2).stderr

    assert rounds("diff", "fake", "fake").stdout == "fake and fake have the same configuration\n"
    assert re.search(r"^setting +default +fake *$", rounds("diff", "fake").stdout, re.MULTILINE)
    assert {"name": "rounds", "a": 1, "b": 2} in json.loads(rounds("diff", "fake", "--json").stdout)["settings"]

    text = rounds("explain", "kl/mean", "fake").stdout
    assert "healthy    0 to 30, rises slowly" in text
    assert re.search(r"^round 1  \S+  0\.5 0\.5$", text, re.MULTILINE)
    found = json.loads(rounds("explain", "kl/mean", "fake", "--json").stdout)
    assert found["values"]["kl/mean"][0] == {"round": 1, "iteration": 1, "value": 0.5}
    assert "kl/men: no such metric; did you mean kl/mean" in rounds("explain", "kl/men", code=2).stderr
    assert "fake has logged none of it yet" in rounds("explain", "rollouts/empty_share", "fake").stdout


@pytest.mark.parametrize("name", GLOSSARY)
def test_every_metric_is_explained(name):
    found = explanation_of(name)
    assert found.as_dict()["name"] == name
    assert found.meaning in " ".join(shown(explanation_view(found, [], None), 1000).split()).replace("\n", " ")


def test_a_metric_is_found_by_the_name_that_a_run_logs_it_by(run):
    assert explanation_of("score/preference").name == "score/<reward>"
    assert explanation_of("kl/mean").logged_by == ["compute_advantages"]
    (figures,) = figures_of("reward_model/accuracy", standing_of(run).stages)
    assert figures.values == [(1, 0, 0.8)]
    assert figures_of("score/<reward>", standing_of(run).stages) == []
    with pytest.raises(
        ConfigError, match=r"nothing_like_it: no such metric; did you mean those in tasks/metrics/README"
    ):
        explanation_of("nothing_like_it")


def test_figures_of_a_long_run_are_folded():
    values = [(1, i, float(i)) for i in range(1, 101)]
    text = shown(explanation_view(explanation_of("kl/mean"), [Figures(name="kl/mean", values=values)], "x"), 400)
    assert "1 2 3 4 5 … 75 more … 81 82" in text


def test_a_line_of_bars_runs_from_low_to_high():
    assert sparkline([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert sparkline([1.0, 1.0, float("nan")]) == "▁▁ "
    assert len(sparkline([float(i) for i in range(1000)])) == 40


# Rollouts


def test_whole_texts_keep_their_lines_and_obey_nothing(run):
    text = shown(wide_view(select(run).data_set.search("score<0")), 200)
    assert "[red]good[/red]\\x1b[2J\n dog" in text
    assert text.startswith("r2.i2.s0.aa.0   stop   score -1.000")


def test_options_that_are_searches(rounds):
    assert "r2.i2.s0.aa.0" in rounds("rollouts", "--wide", "--grep", "good[/red]").stdout
    assert "0 of 0 rollouts" in rounds("rollouts", "--grep", "go.d").stdout
    text = rounds("rollouts", "--prompt", "bb").stdout
    assert re.findall(r"^r\d\.i\d", text, re.MULTILINE) == ["r1.i1", "r1.i2", "r2.i1", "r2.i2"]
    of_round = rounds("rollouts", "--prompt", "bb", "--round", 2).stdout
    assert re.findall(r"^r\d\.i\d", of_round, re.MULTILINE) == ["r2.i1", "r2.i2"]
    assert "4 of 4 rollouts" in text


def test_a_sample_is_the_same_each_time_and_says_its_seed(rounds):
    options = ("rollouts", "--round", "all", "--iteration", "all", "--sample", 3)
    first, second = rounds(*options).stdout, rounds(*options).stdout
    assert first == second
    assert first.endswith("3 of 8 rollouts, drawn with seed 0\n")
    rows = json.loads(rounds(*options, "--json").stdout)["rollouts"]
    assert [row["rollout_id"] for row in rows] == re.findall(r"^(r\d\S+)", first, re.MULTILINE)
    ordered = json.loads(rounds(*options, "--sort", "-score", "--json").stdout)["rollouts"]
    assert sorted(row["rollout_id"] for row in ordered) == sorted(row["rollout_id"] for row in rows)
    assert [row["score"] for row in ordered] == sorted((row["score"] for row in rows), reverse=True)
    assert "8 of 8 rollouts" in rounds(*options[:-1], 100).stdout


def test_parquet_has_every_column_and_writes_over_nothing(rounds, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.query.parquet.ROWS_AT_ONCE", 3)
    file = tmp_path / "rows.parquet"
    options = ("rollouts", "--round", "all", "--iteration", "all", "--sort", "-score")
    assert rounds(*options, "--parquet", file).stdout == f"{file}: 8 rollouts\n"
    rows = json.loads(rounds(*options, "--json").stdout)["rollouts"]
    assert pq.read_table(file).to_pylist() == rows
    before = file.read_bytes()
    assert (
        f"--parquet {file}: exists already; name another file" in rounds("rollouts", "--parquet", file, code=2).stderr
    )
    assert file.read_bytes() == before
    rounds("rollouts", "--parquet", tmp_path / "nowhere" / "rows.parquet", code=2)
    monkeypatch.setattr("flows.query.parquet.whole", lambda table, schema: 1 / 0)
    with pytest.raises(AssertionError):
        rounds("rollouts", "--parquet", tmp_path / "broken.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_parquet_of_no_rows_has_the_columns(rounds, tmp_path):
    rounds("rollouts", "--where", "score>99", "--parquet", tmp_path / "none.parquet")
    table = pq.read_table(tmp_path / "none.parquet")
    assert table.num_rows == 0
    assert {"rollout_id", "advantages", "held_out_true_quality", "iteration"} <= set(table.column_names)


def test_the_address_of_the_page_says_what_was_asked_for(rounds):
    assert rounds("rollouts", "--url").stdout == "http://127.0.0.1:7400/runs/fake/rollouts\n"
    told = rounds("rollouts", "--round", 1, "--where", "score<0", "--grep", "a b", "--sort", "-length", "--url").stdout
    assert told.endswith("/runs/fake/rollouts?round=1&q=%22a+b%22+score%3C0.0+sort%3A-length\n")
    assert "data=evaluation" in rounds("rollouts", "--data", "evaluation", "--url").stdout
    assert "--where score<x" in rounds("rollouts", "--where", "score<x", "--url", code=2).stderr


@pytest.mark.parametrize(
    "text",
    [
        "lamp",
        '"red lamp"',
        r'"say \"hi\""',
        r"/a\/b/ -/x\b/",
        "score<0 -length>=3 kl_sum!=1e-05",
        'finish_reason:stop -prompt:"the end" response:/^x/ sort:-score sort:length',
        "a-b it's 5",
    ],
)
def test_a_search_is_written_as_it_is_read(text):
    assert parse(written(parse(text))) == parse(text)
    assert written(Query()) == ""


# A run in progress


def test_watch_shows_a_run_until_it_ends_and_takes_no_more_than_its_share(run, monkeypatch):
    # Each look asks once more for what is shown of it.
    in_progress = iter([True, True, True, True, False])
    pauses = []
    monkeypatch.setattr(type(run), "is_in_progress", lambda self: next(in_progress, False))
    monkeypatch.setattr(watch.time, "sleep", pauses.append)
    console = Console(width=80, height=24, force_terminal=True)
    with console.capture() as capture:
        watch.watch(run, LATEST, console)
    assert "fake: " in capture.get()
    assert len(pauses) == 2
    assert min(pauses) >= watch.PAUSE_S


def test_ctrl_c_leaves_a_watch(run, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(run), "is_in_progress", lambda self: True)
    monkeypatch.setattr(watch.time, "sleep", interrupted)
    console = Console(width=80, height=24, force_terminal=True)
    with console.capture():
        watch.watch(run, LATEST, console)


def test_watch_needs_a_terminal(rounds):
    assert "--watch: standard output is no terminal" in rounds("status", "--watch", code=2).stderr
    assert "leave one of the two out" in rounds("status", "--watch", "--json", code=2).stderr


def test_status_of_a_round_alone(rounds):
    found = json.loads(rounds("status", "--round", 2, "--json").stdout)
    assert {stage["round"] for stage in found["stages"]} == {2}
    assert "round 1\n" not in rounds("status", "--round", 2).stdout
    assert "the run has no round 9; it has 1 to 2" in rounds("status", "--round", 9, code=2).stderr
    assert "--round x: not a number" in rounds("status", "--round", "x", code=2).stderr


def test_logs_are_shown_and_obeyed_by_nobody(rounds, run):
    log = run.root / "worker.log"
    log.write_text("one\ntwo \x1b[2J\rthree\n")
    stages, told = rounds("logs").stdout.split(f"==> {log} <==\n")
    assert told == "one\ntwo \\x1b[2J\\rthree\n"
    assert len(stages.splitlines()) == len(run.store.outputs())
    line = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  round 1 · train reward model: 2 rows, 1\.5 s, accuracy 0\.800"
    assert re.search(f"^{line}$", stages, re.MULTILINE)
    *stages, _, last = rounds("logs", "--lines", 1).stdout.splitlines()
    assert (len(stages), last) == (1, "two \\x1b[2J\\rthree")
    assert stages[0].endswith("round 2 · report round: 2 rows, 1.5 s")
    found = json.loads(rounds("logs", "--json").stdout)
    assert (found["logs"][0]["lines"][0], len(found["stages"])) == ("one", len(run.store.outputs()))
    assert "leave one of the two out" in rounds("logs", "-f", "--json", code=2).stderr
    log.write_text("")
    assert rounds("logs").stdout.endswith(f"==> {log} <== (empty)\n")


def test_a_run_that_has_done_nothing_says_so(tmp_path):
    finished_run(tmp_path, "silent", document(tmp_path, rounds=1, iterations=1), stop_before=("prepare_data", 1, 0))
    told = CliRunner().invoke(cli.app, ["--home", str(tmp_path), "logs"]).stdout
    assert told == "silent has committed nothing yet\n"


def test_followed_logs_end_with_the_run_and_lose_no_line(run, monkeypatch):
    log = run.root / "worker.log"
    log.write_text("before\n")
    monkeypatch.setattr(logs, "PAUSE_S", 0.01)
    going = threading.Event()
    going.set()
    monkeypatch.setattr(type(run), "is_in_progress", lambda self: going.is_set())
    found = []
    reader = threading.Thread(target=lambda: found.extend(logs.followed(run, 100)))
    reader.start()
    with log.open("a") as stream:
        for i in range(50):
            stream.write("li")
            stream.flush()
            stream.write(f"ne {i}\n")
            stream.flush()
            time.sleep(0.002)
        stream.write("half")
    going.clear()
    reader.join(10)
    stages = [logs.stage_line(Manifest.read(path)) for path in run.store.outputs()]
    assert sorted(found[: len(stages)]) == sorted(stages)
    assert found[len(stages) :] == [logs.head_of(log), "before", *(f"line {i}" for i in range(50)), "half"]
    log.unlink()
