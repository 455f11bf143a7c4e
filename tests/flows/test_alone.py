"""One part of the chain alone: responses, scores of texts and an evaluation, of a run's model or another."""

import json
import shutil
import statistics
from math import sqrt

import pytest
import torch
from fake_runs import HOSTILE
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import flows
from flows.alone.evaluate import Measured, measured
from flows.cli import main as cli
from flows.presets.quickstart import true_quality
from flows.terminal.views.alone import sample_view
from tasks.config import FromScratchConfig
from tasks.data import Text
from tasks.models import make_model

PROMPT = "where is the lamp?"


@pytest.fixture
def rounds(looked_at):
    """The command, on a run which is not changed by it."""
    root = looked_at / "runs" / "tiny"

    def files():
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != "lock"}

    def call(*args, code=0):
        before = files()
        result = CliRunner().invoke(cli.app, ["--home", str(looked_at), *map(str, args)])
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        assert files() == before
        return result

    return call


@pytest.fixture
def lines(rounds):
    def call(*args):
        return [json.loads(line) for line in rounds(*args, "--json").stdout.splitlines()]

    return call


@pytest.fixture(scope="module")
def run(looked_at):
    return flows.open("tiny", home=looked_at)


@pytest.fixture(scope="module")
def exported(looked_at, tmp_path_factory):
    """The policy after round 1 as a directory of its own."""
    directory = tmp_path_factory.mktemp("exported") / "policy"
    arguments = ["--home", str(looked_at), "export", "tiny", "--round", "1", "--to", str(directory)]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    return directory


def logprobs_by(model, row):
    """Log-probabilities of a row's tokens after its prompt, by transformers alone."""
    prompt = AutoTokenizer.from_pretrained(model.name_or_path)(row["prompt"])["input_ids"]
    ids = row["response_token_ids"]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1).tolist()


def test_responses_are_the_policy_s_of_the_round_that_is_asked_for(lines, exported, run):
    (row,) = lines("sample", PROMPT, "--round", "1")
    assert row["prompt"] == PROMPT
    policy = AutoModelForCausalLM.from_pretrained(exported)
    assert logprobs_by(policy, row) == pytest.approx(row["logprobs"], abs=1e-4)
    # The run's setting, and its first round's last checkpoint is the same as by its iteration.
    assert len(row["response_token_ids"]) <= 8
    assert lines("sample", PROMPT, "--round", "1", "--iteration", "2") == [row]
    assert lines("sample", PROMPT, "--model", exported, "--max-new-tokens", "8") == [row]
    # Round 0 is what the warm-up made.
    (before,) = lines("sample", PROMPT, "--round", "0")
    reference = AutoModelForCausalLM.from_pretrained(run.stage("warm_up", round=1).directory / "policy")
    assert before["logprobs"] != row["logprobs"]
    reference_directory = AutoModelForCausalLM.from_pretrained(exported)
    reference_directory.load_state_dict(reference.state_dict())
    assert logprobs_by(reference_directory, before) == pytest.approx(before["logprobs"], abs=1e-4)


def test_a_response_is_a_function_of_its_prompt_its_number_and_the_seed(lines, tmp_path):
    first, second, third = lines("sample", PROMPT, "--samples", "3")
    assert first["response_token_ids"] != second["response_token_ids"] != third["response_token_ids"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "place": 3}) + "\n" for prompt in ("who?", PROMPT)))
    others = lines("sample", "--prompts", file, "--samples", "2")
    assert [row["prompt"] for row in others] == ["who?", "who?", PROMPT, PROMPT]
    # The data's own columns go with a response, and are part of what its prompt is.
    assert all(row["place"] == 3 for row in others)
    alone = lines("sample", "who?", PROMPT, "--samples", "2")
    assert [row["response_token_ids"] for row in alone[2:]] == [r["response_token_ids"] for r in (first, second)]
    # Other prompts have other draws: a policy that has learned little would answer all alike by the same ones.
    assert len({token for row in (alone[0], alone[2]) for token in row["response_token_ids"]}) > 10
    (other,) = lines("sample", PROMPT, "--seed", "1")
    assert other["response_token_ids"] != first["response_token_ids"]
    (short,) = lines("sample", PROMPT, "--max-new-tokens", "2")
    assert short["response_token_ids"] == first["response_token_ids"][:2]


def test_scores_are_those_of_the_run_s_rewards_and_their_sum(rounds, lines, run, tmp_path):
    rows = list(run.rollouts(top=3))
    columns = {name: json.loads(rows[0]["extra"])[name] for name in json.loads(rows[0]["extra"])}
    texts = ["it is on the table.", "no"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"prompt": PROMPT, "response": text, **columns}) + "\n" for text in texts))
    scored = lines("score", file)
    preference = run.reward_model().score([PROMPT, PROMPT], texts)
    quality = true_quality([PROMPT, PROMPT], texts, [columns, columns])
    assert [row["score_preference"] for row in scored] == pytest.approx(preference, abs=1e-5)
    assert [row["score_quality"] for row in scored] == [row["score_true_quality"] for row in scored] == quality
    # The second weighs a half, and what is held out nothing.
    sums = [a + b / 2 for a, b in zip(preference, quality, strict=True)]
    assert [row["score"] for row in scored] == pytest.approx(sums, abs=1e-5)
    assert [row["response"] for row in scored] == texts
    table = rounds("score", file).stdout
    assert "it is on the table." in table
    assert f"{sums[0]:.3f}" in table


def test_a_function_that_lacks_its_columns_leaves_the_other_rewards(rounds, run):
    done = rounds("score", "--prompt", PROMPT, "--response", "no", "--response", "yes", "--json")
    scores = [json.loads(line) for line in done.stdout.splitlines()]
    expected = run.reward_model().score([PROMPT] * 2, ["no", "yes"])
    assert [row["score_preference"] for row in scores] == pytest.approx(expected, abs=1e-5)
    assert all(row.keys() == {"prompt", "response", "score_preference"} for row in scores)
    assert done.stderr.count("note: left out: rewards.quality: ") == 1


def test_any_reward_model_scores(lines, run):
    directory = run.stage("train_reward_model", round=1).directory / "reward_model"
    (row,) = lines("score", "--model", directory, "--prompt", PROMPT, "--response", "no")
    assert row["score"] == pytest.approx(run.reward_model(round=1).score([PROMPT], ["no"])[0], abs=1e-5)


def test_an_evaluation_is_the_stage_s(rounds, run, exported):
    committed = run.stage("evaluate_policy", round=1).manifest.metrics
    reused = json.loads(rounds("evaluate", "--round", "1", "--json").stdout)
    assert (reused["is_reused"], reused["metrics"]) == (True, committed)
    # The same weights as another model: sampled and scored anew.
    anew = json.loads(rounds("evaluate", "--round", "1", "--model", exported, "--json").stdout)
    assert not anew["is_reused"]
    assert anew["metrics"] == pytest.approx(committed, abs=1e-5)
    names = ["score", "preference", "quality", "true_quality", "response_length"]
    assert [line["name"] for line in anew["lines"]] == names
    assert [line["policy"] for line in anew["lines"]] == pytest.approx(
        [committed[f"evaluation/{n}"] for n in names], abs=1e-5
    )
    shown = rounds("evaluate", "--round", "1").stdout
    assert "on 4 held-out prompts" in shown
    assert " ± " in shown
    earlier = json.loads(rounds("evaluate", "--round", "1", "--iteration", "1", "--json").stdout)
    assert earlier["model"] == "policy of tiny, round 1, iteration 1"


def test_a_standard_error_is_that_of_independent_prompts():
    # Two responses to each of three prompts. Means of the prompts: 1, 2, 6; of the differences: 1, 1, 4.
    metrics = {"evaluation/score": 3.0, "evaluation/reference_score": 1.0, "evaluation/reference_score_std": 2.0}
    line = measured(
        "score",
        [0.0, 2.0, 1.0, 3.0, 6.0, 6.0],
        [0.0, 0.0, 1.0, 1.0, 2.0, 2.0],
        ["a", "a", "b", "b", "c", "c"],
        {**metrics, "evaluation/score_gain": 1.0},
    )
    assert isinstance(line, Measured)
    assert line.policy_stderr == pytest.approx(statistics.stdev([1, 2, 6]) / sqrt(3))
    assert line.reference_stderr == pytest.approx(statistics.stdev([0, 1, 2]) / sqrt(3))
    assert line.gain_stderr == pytest.approx(statistics.stdev([1, 1, 4]) / sqrt(3) / 2)


def test_a_model_of_other_tokens_is_refused_with_what_to_do_instead(rounds, tmp_path):
    shape = FromScratchConfig(vocab_size=270, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    make_model(tmp_path / "other", shape, [Text(prompt=None, response="a b c d e " * 9, place="")], seed=0)
    said = rounds("evaluate", "--model", tmp_path / "other", code=2).stderr
    assert said.startswith(f"error: --model {tmp_path / 'other'}: has another vocabulary than the policy of run tiny")
    assert "rounds sample --model" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample",), "PROMPT: give prompts, or the file that holds them by --prompts, and not both"),
        (("sample", "a", "--prompts", "b"), "PROMPT: give prompts, or the file"),
        (("sample", " "), "PROMPT: one is empty; write what the model is to answer"),
        (("sample", "a", "--round", "3"), "--round 3: run tiny has no policy of that round; it has 1, 2"),
        (("sample", "a", "--iteration", "9"), "--iteration 9: run tiny has no policy of that iteration; it has 1, 2"),
        (("sample", "a", "--round", "0", "--iteration", "1"), "--iteration 1: round 0 is the policy before any"),
        (("sample", "a", "--model", ".", "--run", "tiny"), "--run tiny: --model . is no run's"),
        (("sample", "a", "--model", ".", "--round", "1"), "--round 1: --model . is no run's"),
        (("sample", "a", "--max-new-tokens", "500"), "prompt 1: has 2 tokens, with a response of up to 500 more than"),
        (("sample", "a", "--chat"), "has no chat template"),
        (("score",), "FILE: give a file of prompts and responses, or --prompt with --response"),
        (("score", "--prompt", "a"), "--prompt: goes with --response"),
        (("score", "a.jsonl", "--response", "a"), "--prompt: goes with --response"),
        (("score", "--model", "{policy}", "--prompt", "a", "--response", "b"), "not a sequence classifier"),
        (("evaluate", "--round", "3"), "--round 3: run tiny has no policy of that round; it has 1, 2"),
        (("evaluate", "--model", "{policy}", "--round", "3"), "--round 3: run tiny has no such round; it has 1 to 2"),
        (("evaluate", "--model", "{policy}", "--iteration", "1"), "--iteration 1: --model takes the place"),
    ],
)
def test_a_mistake_is_one_sentence(rounds, exported, arguments, message):
    (line,) = rounds(*(str(word).format(policy=exported) for word in arguments), code=2).stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_file_without_responses_names_its_first_row(rounds, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "a"}\n')
    (line,) = rounds("score", file, code=2).stderr.splitlines()
    assert f"{file}, row 1: " in line


def test_what_a_model_writes_is_shown_and_never_obeyed():
    row = {"prompt": [{"role": "user", "content": HOSTILE}], "response": HOSTILE, "finish_reason": "length"}
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(sample_view([{**row, "sample_index": 0, "response_token_ids": [1, 2]}], HOSTILE, seed=3))
    shown = captured.get()
    assert "\x1b[2J" not in shown
    assert shown.count("[red]good[/red]\\x1b[2J") == 3
    assert "user: " in shown
    assert "(cut off after 2 tokens)" in shown


def test_a_run_that_has_only_begun_is_sampled_from_where_it_starts(looked_at, tmp_path):
    """What ``rounds run --until train_reward_model`` leaves: a reference and a reward model."""
    home = tmp_path / "home"
    shutil.copytree(looked_at / "runs" / "tiny", home / "runs" / "tiny")
    stages = home / "runs" / "tiny" / "stages"
    shutil.rmtree(stages / "round-002")
    for path in stages.glob("round-001/*"):
        if path.name not in ("prepare_data", "warm_up", "train_reward_model"):
            shutil.rmtree(path)

    def call(*args):
        return CliRunner().invoke(cli.app, ["--home", str(home), *args])

    assert "policy that tiny starts from" in call("sample", PROMPT).stdout
    assert call("score", "--prompt", PROMPT, "--response", "no").exit_code == 0
    evaluated = json.loads(call("evaluate", "--json").stdout)
    assert evaluated["metrics"]["evaluation/kl"] == pytest.approx(0, abs=1e-5)
    shutil.rmtree(stages / "round-001" / "train_reward_model")
    assert "run tiny has no reward model yet" in call("score", "--prompt", PROMPT, "--response", "no").stderr
    assert "has not yet in round 1 what an evaluation needs (reward model)" in call("evaluate").stderr
    shutil.rmtree(stages / "round-001" / "warm_up")
    assert "run tiny has no policy yet" in call("sample", PROMPT).stderr
