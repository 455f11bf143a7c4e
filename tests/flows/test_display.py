"""Live progress, told by hand what happens."""

import io
import re

import pytest
from fake_runs import ILLNESS, document, finished_run
from rich.console import Console

from flows.plan.plan import make_plan
from flows.terminal.display import BarDisplay, LineDisplay, display_for
from tasks.contract.call import StageCall
from tasks.store.manifest import Manifest


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The stages of a finished run, as calls and references."""
    home = tmp_path_factory.mktemp("home")
    run = finished_run(home, "fake", document(home, rounds=1))
    return [(call_of(run, p), p.ref) for p in make_plan(run, run.config).stages]


def call_of(run, planned):
    return StageCall(
        stage=planned.stage, place=planned.place, settings={}, seed=0, run_root=str(run.root), execution={}
    )


def play(display, planned, *, num_reused=0):
    """Reuse the first stages and execute the others."""
    with display:
        for call, ref in planned[:num_reused]:
            display.stage_reused(call, ref)
        for call, ref in planned[num_reused:]:
            display.stage_started(call)
            display.stage_progress(call, {"done": 1, "total": 2, "unit": "rows", "tokens": 10})
            display.stage_finished(call, ref, 99.0)


def test_a_pipe_gets_timestamped_lines_without_control_characters(planned):
    stream = io.StringIO()
    display = display_for(len(planned), stream)
    assert isinstance(display, LineDisplay)
    play(display, planned)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 * len(planned)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d  [^\x00-\x1f\x7f-\x9f]+", line) for line in lines)
    assert "round 1 · train reward model: finished, 2 rows, 1.5 s, accuracy 0.800" in stream.getvalue()
    assert "round 1 · iteration 2 · generate rollouts · shard 2: started (11/" in stream.getvalue()


def test_reused_stages_are_one_line(planned):
    stream = io.StringIO()
    play(LineDisplay(len(planned), stream), planned, num_reused=5)
    assert stream.getvalue().count("reused") == 1
    assert "5 stages reused" in stream.getvalue()
    assert stream.getvalue().index("5 stages reused") < stream.getvalue().index("started")


def test_a_run_that_only_reuses_says_so_at_its_end(planned):
    stream = io.StringIO()
    display = LineDisplay(len(planned), stream)
    play(display, planned, num_reused=len(planned))
    assert stream.getvalue().splitlines()[-1].endswith(f"{len(planned)} stages reused")
    assert display.num_done == len(planned)


def test_the_reports_of_all_rounds_are_remembered(planned):
    for num_reused in (0, len(planned)):
        display = LineDisplay(len(planned), io.StringIO())
        play(display, planned, num_reused=num_reused)
        assert display.reports == {1: planned[-1][1]}


def test_an_attempt_that_is_tried_again_is_told_without_what_acts_on_a_terminal(planned):
    stream = io.StringIO()
    display = LineDisplay(len(planned), stream)
    call, ref = planned[0]
    display.stage_started(call)
    display.stage_failed(call, "killed \x1b[2J[red]", will_retry=True)
    display.stage_started(call)
    display.stage_finished(call, ref, 1.0)
    assert "prepare data: killed \\x1b[2J[red]; another attempt may follow" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_warning_of_a_stage_is_told_and_the_stage_goes_on(planned):
    stream = io.StringIO()
    display = LineDisplay(len(planned), stream)
    call, ref = next((call, ref) for call, ref in planned if call.stage == "update_policy")
    display.stage_started(call)
    display.stage_warned(call, "entropy is 0.1\x1b[2J, below health.min_entropy=1; raise it")
    display.stage_finished(call, ref, 1.0)
    started, warned, finished = (line[10:] for line in stream.getvalue().splitlines())
    assert started.startswith("round 1 · iteration 1 · update policy: started")
    told = "entropy is 0.1\\x1b[2J, below health.min_entropy=1; raise it"
    assert warned == f"round 1 · iteration 1 · update policy: {told}"
    assert finished.startswith("round 1 · iteration 1 · update policy: finished")


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """Two rounds, the second of which has an update that moves the policy too far."""
    home = tmp_path_factory.mktemp("home")
    run = finished_run(home, "ill", document(home))
    return [(call_of(run, p), p.ref) for p in make_plan(run, run.config).stages]


def test_what_leaves_its_healthy_range_is_told_once_when_it_is_first_seen(ill):
    stream = io.StringIO()
    play(LineDisplay(len(ill), stream), ill)
    told = [line[10:] for line in stream.getvalue().splitlines()]
    (at,) = [number for number, line in enumerate(told) if line.startswith("warning: ")]
    assert told[at].startswith(f"warning: {ILLNESS}")
    assert told[at - 1].startswith("round 2 · iteration 2 · update policy: finished")


def test_the_line_with_a_gain_counts_the_warnings_of_its_round(ill, tmp_path):
    gains = [(call, ref) for call, ref in ill if call.stage == "evaluate_policy"]
    for _, ref in gains:
        manifest = Manifest.read(ref.directory)
        manifest.metrics["evaluation/score_gain"] = 0.5
        manifest.write(ref.directory)
    stream = io.StringIO()
    play(LineDisplay(len(ill), stream), ill)
    lines = [line for line in stream.getvalue().splitlines() if "evaluate policy: finished" in line]
    assert [line.endswith(", 1 warning") for line in lines] == [False, True]
    assert all("gain 0.50" in line for line in lines)
    assert ", , " not in stream.getvalue()


def test_a_failure_that_ends_the_run_is_left_to_the_command(planned):
    stream = io.StringIO()
    display = LineDisplay(len(planned), stream)
    display.stage_failed(planned[0][0], "no such column", will_retry=False)
    assert stream.getvalue() == ""


def test_a_terminal_gets_bars_and_one_line_an_iteration(planned):
    stream = Terminal()
    display = display_for(len(planned), stream)
    assert isinstance(display, BarDisplay)
    console = Console(file=stream, force_terminal=True, width=140, color_system=None)
    with BarDisplay(len(planned), console) as display:
        for call, ref in planned:
            display.stage_started(call)
            display.stage_progress(call, {"done": 1, "total": 2, "unit": "rows", "tokens": 10})
            display._live.refresh()
            display.stage_finished(call, ref, 1.0)
        display._live.refresh()
    lines = [line.rstrip() for line in plain(stream.getvalue())]
    iterations = [line for line in lines if re.match(r"round 1 · iteration \d +score", line)]
    assert [re.sub(" +", " ", line) for line in iterations] == [
        "round 1 · iteration 1 score 1.000 KL 0.500 length 2.0 entropy 3.000",
        "round 1 · iteration 2 score 1.000 KL 0.500 length 2.0 entropy 4.000",
    ]
    assert any("generate rollouts" in line and "1/2 rows" in line for line in lines)
    assert any(f"{len(planned)}/{len(planned)} stages" in line for line in lines)


def test_each_stage_that_runs_has_a_bar_that_tells_its_shard_in_a_terminal_of_80_columns(planned):
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    shards = [(call, ref) for call, ref in planned if call.stage == "score_rollouts" and call.place.iteration == 1]
    with BarDisplay(len(planned), console) as display:
        for call, _ in shards:
            display.stage_started(call)
        display._bars = {label: (bar, since - 1) for label, (bar, since) in display._bars.items()}
        for done, (call, _) in enumerate(shards, start=1001):
            display.stage_progress(call, {"done": done, "total": 20000, "unit": "rows", "tokens": 123456})
        first, second = bars_of(display)
        assert re.fullmatch(r"round 1 · iteration 1 · score rollouts .* 1,001/20,000 rows --:--", first)
        assert re.fullmatch(r"round 1 · iteration 1 · score rollouts · shard 2 .* 1,002/20,000 rows --:--", second)
        display.stage_finished(*shards[1], 1.0)
        (left,) = bars_of(display)
        assert "shard 2" not in left
        display.stage_failed(shards[0][0], "[red]gone", will_retry=True)
        assert bars_of(display) == []
    assert "[red]gone; another attempt may follow" in "\n".join(plain(stream.getvalue()))


def bars_of(display):
    """The bars of stages as they are now, in a terminal of 80 columns."""
    text = io.StringIO()
    Console(file=text, width=80).print(display._stage_bars)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()]


def plain(text):
    """Lines without the sequences that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
