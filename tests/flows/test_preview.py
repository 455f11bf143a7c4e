"""What is said before a run: on a tiny model and files of a few rows. The worker is this very process, but for one test."""

import json

import pytest
import yaml
from conftest import TINY
from test_bad_models import a_model, without
from test_when_models_are_checked import CHATML, a_reward_model
from typer.testing import CliRunner
from vllm_stand_in import serving

from flows import launch
from flows.cli import main as cli
from flows.config import PRESETS, load_config
from flows.preview import examination, examine
from flows.preview.disk import num_kept, proposed
from flows.preview.duration import checkpoint_bytes, seconds_of_run, seconds_of_stages
from flows.preview.first_look import look_first, preview_config
from flows.preview.memory import memory_of_stages
from flows.runs import Run
from tasks.contract import PreviewConfig, StageError
from tasks.errors import ConfigError, Mistakes
from tasks.preview import look


class InThisProcess:
    """A worker without a process of its own."""

    def __init__(self, log):
        self.asked = []

    def preview(self, config, *, report, timeout_s):
        self.asked.append(config)
        # As it is sent.
        return json.loads(json.dumps(look(PreviewConfig(**config.model_dump(mode="json")), report)))

    def begin(self):
        pass

    def close(self):
        pass


@pytest.fixture
def nearby(monkeypatch):
    monkeypatch.setattr(examination, "Supervisor", InThisProcess)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return a_model(tmp_path_factory.mktemp("preview") / "model")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIRS = [{"prompt": f"where is lamp {i}?", "chosen": " on the table.", "rejected": " go away."} for i in range(16)]


def a_document(tmp_path, model, /, **changes):
    pairs = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    return {
        "iterations": 2,
        "model": {"policy": str(model)},
        "data": {"prompts": [pairs], "preferences": [pairs], "num_held_out_prompts": 4},
        "reward_model": {"calibration_samples": 4},
        "rewards": {"preference": {"model": "trained"}},
        "rollouts": {"prompts_per_iteration": 4, "sampling": {"max_new_tokens": 8}},
        **changes,
    }


def seen(tmp_path, document, **options):
    return examine(document, Run(tmp_path / "home" / "runs" / "r", tmp_path / "home"), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """What is said of a sound configuration, by a worker of its own."""
    root = tmp_path_factory.mktemp("whole")
    return seen(root, a_document(root, model))


def test_a_sound_configuration_has_no_mistake_and_its_plan_is_counted(whole):
    assert whole.mistakes == []
    # By hand: two iterations of one shard.
    assert whole.stages == {
        "prepare_data": 1,
        "train_reward_model": 1,
        "critic_pretraining": 1,
        "generate_rollouts": 2,
        "score_rollouts": 2,
        "compute_advantages": 2,
        "update_policy": 2,
        "audit_rollouts": 2,
        "evaluate_policy": 1,
        "report_round": 1,
    }


def test_rows_of_each_source_are_counted_and_the_first_is_shown_as_the_model_reads_it(whole):
    assert [(s["kind"], s["rows"], s["kept"]) for s in whole.sources] == [("preferences", 16, 16), ("prompts", 16, 16)]
    preference, prompt = whole.examples
    assert prompt["texts"] == ["<s>where is lamp 0?"]
    assert preference["texts"] == ["<s>where is lamp 0? on the table.</s>", "<s>where is lamp 0? go away.</s>"]
    assert preference["ranks"] == [1, 2]


def test_time_memory_and_disk_are_estimated(whole):
    assert whole.fits
    assert set(whole.seconds) >= {"generate_rollouts", "score_rollouts", "update_policy", "train_reward_model"}
    assert all(seconds > 0 for seconds in whole.seconds.values())
    assert whole.total_seconds > sum(whole.seconds.values())
    assert whole.disk.kept == 2
    json.dumps(whole.as_dict())


def test_mistakes_of_fields_files_functions_and_models_are_told_together(tmp_path, nearby, model):
    bad = a_model(tmp_path / "bad")
    without(bad, "pad_token")
    pairs = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b"}, *PAIRS])
    rewards = {
        "preference": {"model": "trained"},
        "other": {"model": str(model)},
        "rule": {"function": "no_such_module:f"},
    }
    data = {"prompts": [str(tmp_path / "none.jsonl"), str(tmp_path / "a.xls")], "preferences": [pairs, {"pth": "x"}]}
    (tmp_path / "a.xls").write_text("")
    changes = {"seed": -1, "ppo": {"epochs": 0}, "model": {"policy": str(bad)}, "data": data, "rewards": rewards}
    told = seen(tmp_path, a_document(tmp_path, model, **changes)).mistakes
    expected = [
        "seed=-1",
        "ppo: epochs=0",
        "data.preferences.1.pth: unknown key",
        "none.jsonl does not exist",
        "a.xls ends in '.xls'",
        "no_such_module",
        "has no pad token",
        "not a sequence classifier",
        "bad.jsonl, row 1: there is no column rejected",
    ]
    assert [part for part in expected if not any(part in sentence for sentence in told)] == []
    assert len(told) == len(expected), told


def test_a_sampling_server_that_no_run_could_use_is_a_mistake_beside_the_others(tmp_path, nearby, model):
    rollouts = {"prompts_per_iteration": 4, "sampling": {"max_new_tokens": 8}, "engine": "vllm"}
    with serving(version="0.19.1") as server:
        document = a_document(tmp_path, model, rollouts=rollouts, execution={"engine_servers": [server.url]})
        document["data"]["prompts"] = [str(tmp_path / "none.jsonl")]
        missing, server_mistake = seen(tmp_path, document).mistakes
    assert "none.jsonl does not exist" in missing
    assert server_mistake.startswith(
        f"execution.engine_servers {server.url}: it is vLLM 0.19.1, and only 0.32.* was tested"
    )
    assert server.paths() == ["/version"]


def test_too_few_rows_to_hold_some_out_are_told_by_the_field_that_asks_for_them(tmp_path, nearby, model):
    data = a_document(tmp_path, model)["data"]
    preview = seen(tmp_path, a_document(tmp_path, model, data={**data, "num_held_out_prompts": 16}), has_trial=False)
    assert preview.mistakes == [
        "data.num_held_out_prompts: 16 rows are too few to hold 16 of them out; give more, or lower "
        "data.num_held_out_prompts"
    ]


def test_rows_that_are_left_out_are_counted_with_the_reason_and_the_first_is_named(tmp_path, nearby, model):
    rows = [*PAIRS, {"prompt": "p", "chosen": "", "rejected": "x"}, {"prompt": "p", "chosen": "x", "rejected": "x"}]
    data = {
        "prompts": [write_rows(tmp_path / "p.jsonl", PAIRS)],
        "preferences": [write_rows(tmp_path / "few.jsonl", rows)],
        "num_held_out_prompts": 4,
        "on_bad_row": "drop",
    }
    preview = seen(tmp_path, a_document(tmp_path, model, data=data), has_trial=False)
    assert preview.mistakes == []
    (source,) = [source for source in preview.sources if source["kind"] == "preferences"]
    assert (source["rows"], source["kept"]) == (18, 16)
    assert sorted(source["dropped"].values()) == [1, 1]
    assert "few.jsonl, row 17: chosen" in source["first_dropped"][0]


def test_a_reward_function_that_fails_is_found_by_the_trial(tmp_path, nearby, model, monkeypatch):
    (tmp_path / "failing_reward.py").write_text("def f(prompts, responses, rows):\n    return [None for _ in rows]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rewards = {"rule": {"function": "failing_reward:f"}}
    (told,) = seen(tmp_path, a_document(tmp_path, model, reward_model=None, rewards=rewards)).mistakes
    assert told.startswith("rewards.rule: failing_reward:f returned None for rollout ")


def test_a_model_that_does_not_fit_is_said_in_numbers_and_not_loaded(tmp_path, nearby, model, monkeypatch):
    monkeypatch.setattr(examination, "free_memory", lambda: 2**20)
    preview = seen(tmp_path, a_document(tmp_path, model))
    assert preview.fits is False
    assert preview.total_seconds is None
    assert preview.disk is not None


def test_a_worker_that_dies_is_a_sentence(tmp_path, model, monkeypatch):
    class Dying(InThisProcess):
        def preview(self, config, **_):
            raise StageError("memory", "the worker was killed by signal SIGKILL; its log is /tmp/x/worker.log")

    monkeypatch.setattr(examination, "Supervisor", Dying)
    assert seen(tmp_path, a_document(tmp_path, model)).mistakes == [
        "reading the data and looking at the models: the memory ran out"
    ]


# The first seconds of a run


def test_a_run_reads_the_first_rows_alone_and_says_so(tmp_path, model, monkeypatch):
    monkeypatch.setattr("flows.preview.first_look.FIRST_ROWS", 10)
    pairs = write_rows(tmp_path / "long.jsonl", [*PAIRS, {"prompt": "bad"}])
    data = {"prompts": [pairs], "preferences": [pairs]}
    config = load_config(write_document(tmp_path, a_document(tmp_path, model, data=data)))
    worker = InThisProcess(None)
    look_first(worker, config, {})
    assert worker.asked[0].first_rows == 10
    rows = [{"prompt": "bad"}, *PAIRS]
    write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(ConfigError, match=r"data\.preferences\.0: .*long\.jsonl, row 1: there is no column chosen"):
        look_first(worker, config, {})
    write_rows(tmp_path / "long.jsonl", [{"p": "bad"}, *PAIRS])
    with pytest.raises(Mistakes, match=r"^the configuration and the first 10 rows of each source: 2 mistakes: "):
        look_first(worker, config, {})


def write_document(tmp_path, document):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_functions_are_not_called_for_a_first_look():
    config = preview_config(load_config(str(TINY)), {}, first_rows=10)
    assert {source["rows"] for source in look(config, lambda _: None)["sources"]} == {0}


def test_what_is_mistaken_is_told_and_leaves_no_run(tmp_path, model, monkeypatch):
    bad = a_model(tmp_path / "bad")
    without(bad, "eos_token")
    reward = a_reward_model(tmp_path / "reward", bad)
    rewards = {"r": {"model": str(reward)}}
    document = a_document(tmp_path, model, model={"policy": str(bad)}, reward_model=None, rewards=rewards)
    config = load_config(write_document(tmp_path, document))
    run = Run(tmp_path / "home" / "runs" / "r", tmp_path / "home")
    monkeypatch.setattr(launch, "pool_of", lambda log, execution, functions: InThisProcess(log))
    monkeypatch.setattr(launch.servers, "begin_prefect", lambda home: None)
    monkeypatch.setattr(launch.servers, "ensure_prefect", lambda home, **_: "http://127.0.0.1:1/api")
    with pytest.raises(Mistakes) as told:
        launch.start(run, config, launch.prepared(run, config))
    assert [sentence.partition(": ")[0] for sentence in told.value.mistakes] == ["model.policy", "rewards.r.model"]
    assert not run.root.exists()


# Arithmetic, by hand

SIZES = {
    "parameters": 1000,
    "forward_bytes": 4,
    "hidden_size": 10,
    "layers": 2,
    "vocabulary": 50,
    "cache_bytes_a_token": 160,
    "kept_bytes_a_token": 600.0,
    "adapter_parameters": 0,
    "others": {},
}


def a_config(tmp_path, model, /, **changes):
    return load_config(write_document(tmp_path, a_document(tmp_path, model, **changes)))


def memory(config, sizes=SIZES):
    stages = memory_of_stages(config, sizes, prompt_tokens=12, device="cpu")
    return {stage.stage: stage for stage in stages}


def test_memory_is_that_of_models_gradients_moments_and_activations(tmp_path, model):
    stages = memory(a_config(tmp_path, model))
    libraries = 700 * 2**20
    update = stages["update_policy"]
    # Policy, reference, critic and reward model of 1000 weights of 4 bytes each.
    assert update.weights == libraries + 4 * 4000
    assert (update.gradients, update.moments) == (4000, 8000)
    # Four rows of 12 + 8 tokens; three numbers of 4 bytes for each of 50 logits of a token.
    assert update.activations == 80 * 600 + 3 * 80 * 50 * 4
    assert stages["generate_rollouts"].cache == 80 * 160 + 4 * 50 * 16
    assert stages["train_reward_model"].weights == libraries + 2 * 4000
    assert update.total == update.weights + 12000 + update.activations


@pytest.mark.parametrize(("processes", "shares", "gradients"), [(1, 1, 1), (2, 1, 1), (2, 2, 2), (1, 2, 3), (2, 8, 4)])
def test_sums_of_shares_wait_for_each_other(tmp_path, model, processes, shares, gradients):
    # Of 1, 2 or 4 shares, 1, 2 or 3 branches at once; and the sum of those before.
    execution = {"train_processes": processes, "shares": shares}
    update = memory(a_config(tmp_path, model, execution=execution))["update_policy"]
    assert (update.gradients, update.moments) == (gradients * 4000, 8000)


def test_layers_that_are_computed_again_keep_their_input_alone(tmp_path, model):
    stages = memory(a_config(tmp_path, model, execution={"gradient_checkpointing": True}))
    # 2 layers of 10 numbers of 4 bytes, and one of two layers in full.
    assert stages["update_policy"].activations == 80 * (80 + 300) + 48000


def test_adapters_have_the_gradients_and_the_base_none(tmp_path, model):
    config = a_config(tmp_path, model, model={"policy": str(model), "lora": {"rank": 4}})
    update = memory(config, {**SIZES, "adapter_parameters": 70})["update_policy"]
    assert (update.gradients, update.moments) == (280, 560)
    # One base, two adapters, the reward model.
    assert update.weights == 700 * 2**20 + 4000 + 2 * 280 + 4000


def test_one_of_two_processes_that_train_in_parts_holds_half_and_what_is_whole_for_a_moment(tmp_path, model):
    in_parts = {"train_processes": 2, "sharded": True}
    stages = memory(a_config(tmp_path, model, execution=in_parts), {**SIZES, "vocabulary": 5, "layers": 10})
    update, reward_model = stages["update_policy"], stages["train_reward_model"]
    # Half of policy and critic; of one of them embedding, head and two of ten layers are whole, and so is their gradient.
    assert update.weights == 700 * 2**20 + 2 * 2000 + 2 * 4 * (2 * 5 * 10 + 2 * 100)
    assert (update.gradients, update.moments) == (2000, 4000)
    # The reference beside it.
    assert reward_model.weights == 700 * 2**20 + 4000 + 2000 + 2 * 4 * 300
    adapters = a_config(tmp_path, model, execution=in_parts, model={"policy": str(model), "lora": {"rank": 4}})
    sizes = {**SIZES, "vocabulary": 5, "layers": 10, "adapter_parameters": 70}
    update = memory(adapters, sizes)["update_policy"]
    # A frozen base has no gradient, and adapters are whole.
    assert update.weights == 700 * 2**20 + 2000 + 4 * 300 + 2 * 280
    assert (update.gradients, update.moments) == (280, 560)


TRIAL = {
    "read": 0.01,
    "step": 0.1,
    "step_a_response": 0.02,
    "forward_a_token": 0.001,
    "learn_a_token": 0.003,
    "optimizer_step": 0.5,
    "function": 0.0,
}
LENGTHS = {"prompts": [10, 14], "preferences": [40], "responses": [], "texts": [], "num_preferences": [32]}


def test_time_is_that_of_steps_tokens_and_passes(tmp_path, model):
    config = a_config(tmp_path, model)
    seconds = seconds_of_stages(config, TRIAL, SIZES, LENGTHS, write_speed=24000.0)
    overhead = 0.3
    # 8 steps of one group and 4 responses; 4 prompts are read.
    assert seconds["generate_rollouts"] == pytest.approx(8 * (0.1 + 4 * 0.02) + 4 * 0.01 + overhead)
    # 4 rows of 20 tokens by reference, critic and reward model.
    assert seconds["score_rollouts"] == pytest.approx(80 * 0.001 * 3 + overhead)
    # Two models, each 4 epochs over 80 tokens with 4 steps; and a checkpoint of a second.
    assert seconds["update_policy"] == pytest.approx(2 * 4 * (80 * 0.003 + 4 * 0.5) + 1.0 + overhead)
    assert checkpoint_bytes(config, SIZES) == 2 * 1000 * 12


def test_responses_are_as_long_as_those_of_the_preferences(tmp_path, model):
    config = a_config(tmp_path, model)
    seconds = seconds_of_stages(config, TRIAL, SIZES, {**LENGTHS, "responses": [1, 3, 2]}, write_speed=24000.0)
    # The group still takes the steps of its longest response, at most 8; each response the 2 of the mean.
    assert seconds["generate_rollouts"] == pytest.approx(8 * 0.1 + 4 * 2 * 0.02 + 4 * 0.01 + 0.3)
    # 4 rows of 14 tokens by three models.
    assert seconds["score_rollouts"] == pytest.approx(56 * 0.001 * 3 + 0.3)
    longer = seconds_of_stages(config, TRIAL, SIZES, {**LENGTHS, "responses": [9, 30]}, write_speed=24000.0)
    assert longer == seconds_of_stages(config, TRIAL, SIZES, LENGTHS, write_speed=24000.0)


def test_a_run_takes_what_its_stages_take_that_would_execute(tmp_path, model):
    run = Run(tmp_path / "home" / "runs" / "r", tmp_path / "home")
    plan = examination.make_plan(run, a_config(tmp_path, model))
    # Two iterations; the other 13 stages take the overhead.
    assert seconds_of_run(plan, {"update_policy": 10.0}) == pytest.approx(20.0 + 13 * 0.3)


def test_checkpoints_are_kept_as_the_settings_say(tmp_path, model):
    config = a_config(tmp_path, model, iterations=10, rounds=2, checkpoint_every=4)
    # Iterations 4, 8 and the last of each round.
    assert num_kept(config, config.checkpoint_every) == 6
    assert num_kept(a_config(tmp_path, model, iterations=10, keep_checkpoints=3), 1) == 3


def test_fewer_checkpoints_are_proposed_where_they_cost_much(tmp_path, model):
    config = a_config(tmp_path, model, iterations=100)
    # The example of flows/README.md: 20 s a checkpoint, 60 s an update, 300 s an iteration.
    seconds = {"update_policy": 80.0, "generate_rollouts": 200.0, "score_rollouts": 40.0}
    assert proposed(config, 20, 0, 2**40, seconds, 1.0) == 14
    cheap = {"update_policy": 60.1, "generate_rollouts": 200.0, "score_rollouts": 40.0}
    assert proposed(config, 1, 0, 2**40, cheap, 10.0) == 1
    # Half of the disk holds 50 of them.
    assert proposed(config, 10, 0, 1000, None, 1.0) == 2


def test_a_lag_takes_one_more_policy_one_more_pass_and_every_checkpoint(tmp_path, model):
    config = a_config(tmp_path, model, iterations=100)
    lagging = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"lag": 1})})
    assert memory(lagging)["generate_rollouts"].weights == memory(config)["generate_rollouts"].weights + 4000
    seconds = seconds_of_stages(lagging, TRIAL, SIZES, LENGTHS, write_speed=24000.0)
    # By reference, critic, reward model, and the policy that will be updated.
    assert seconds["score_rollouts"] == pytest.approx(80 * 0.001 * 4 + 0.3)
    assert proposed(config, 10, 0, 1000, None, 1.0) == 2
    assert proposed(lagging, 10, 0, 1000, None, 1.0) == 1


# rounds new, check and presets


def rounds(*arguments, home, code=0):
    result = CliRunner().invoke(cli.app, ["--home", str(home), *map(str, arguments)])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def make_new(tmp_path, model, rows, *more, code=0):
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    path = tmp_path / "new.yaml"
    arguments = ["new", "--model", model, "--preferences", pairs, "--to", path, *more]
    return path, rounds(*arguments, home=tmp_path / "home", code=code)


def test_a_new_configuration_passes_its_check(tmp_path, nearby, model):
    path, said = make_new(tmp_path, model, [{**row, "prompt": row["prompt"]} for row in PAIRS * 4])
    assert "then: rounds check" in said.stdout
    document = yaml.safe_load(path.read_text())
    assert document["model"]["policy"] == str(model)
    # A base model learns to answer from the preferred answers.
    assert document["data"]["texts"][0]["columns"] == {"response": "chosen"}
    assert document["optimizers"]["learning_rate"] == 1e-4
    settings = [line for line in path.read_text().splitlines() if line.rstrip().endswith(":") is False]
    assert sum("  # " in line for line in settings) >= 8
    checked = rounds("check", path, home=tmp_path / "home")
    assert "fits: at most" in checked.stdout
    assert json.loads(rounds("check", path, "--json", home=tmp_path / "home").stdout)["mistakes"] == []


def test_columns_of_other_names_are_found_and_written_down(tmp_path, nearby, model):
    rows = [{"question": r["prompt"], "preferred": r["chosen"], "worse": r["rejected"]} for r in PAIRS]
    path, _ = make_new(tmp_path, model, rows)
    document = yaml.safe_load(path.read_text())
    columns = {"prompt": "question", "chosen": "preferred", "rejected": "worse"}
    assert document["data"]["preferences"][0]["columns"] == columns
    assert document["data"]["num_held_out_prompts"] == 2


def test_a_model_with_a_chat_template_needs_no_warm_up(tmp_path, nearby):
    chats = a_model(tmp_path / "chats")
    (chats / "chat_template.jinja").write_text(CHATML)
    path, _ = make_new(tmp_path, chats, PAIRS * 4)
    assert "warm_up" not in yaml.safe_load(path.read_text())
    assert "chat template is not used" in path.read_text()


def test_what_is_there_is_never_overwritten(tmp_path, model):
    (tmp_path / "new.yaml").write_text("mine")
    path, said = make_new(tmp_path, model, PAIRS, code=2)
    assert "new.yaml exists already" in said.stderr
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"a": 1, "b": 2}], "there is no column chosen"),
        ([], "holds no rows"),
    ],
)
def test_preferences_that_are_none_are_told_and_nothing_is_written(tmp_path, nearby, model, rows, told):
    path, said = make_new(tmp_path, model, rows, code=2)
    assert told in said.stderr
    assert not path.exists()


def test_several_mistakes_are_printed_below_each_other(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(TINY.read_text()), "seed": -1, "rounds": 0}))
    lines = rounds("run", path, home=tmp_path / "home", code=2).stderr.splitlines()
    assert lines[0] == f"error: {path}: 2 mistakes"
    assert [line[:10] for line in lines[1:]] == ["  1. seed=", "  2. round"]


def test_each_preset_says_what_it_needs_and_takes(tmp_path):
    listed = json.loads(rounds("presets", "--json", home=tmp_path).stdout)
    assert [set(preset) for preset in listed] == [{"name", "what", "needs", "takes"}] * len([*PRESETS.glob("*.yaml")])
    assert "quickstart" in rounds("presets", home=tmp_path).stdout
    assert rounds("presets", "grpo", home=tmp_path).stdout == (PRESETS / "grpo.yaml").read_text()
    assert "no preset of that name" in rounds("presets", "gropo", home=tmp_path, code=2).stderr
