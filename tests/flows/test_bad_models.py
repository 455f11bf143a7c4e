"""Models and data that cannot be trained with: told in one sentence before anything is made, and no run is left behind."""

import json
import re

import pytest
import torch
from conftest import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from flows.config.reading import load_config
from flows.plan.calls import external_models, stage_call
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from tasks.config.data import FromScratchConfig
from tasks.contract.execution import execute
from tasks.contract.resident import ResidentModels
from tasks.data.shapes.records import Text
from tasks.errors import UserError
from tasks.models.from_scratch import make_model

WORDS = "where is the red lamp? it is on the table. thank you for asking."


def a_model(directory, *, context_length=64):
    shape = FromScratchConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)
    texts = [Text(prompt=None, response=WORDS, place="")]
    make_model(directory, shape.model_copy(update={"context_length": context_length}), texts, seed=0)
    return directory


def without(directory, token):
    """Take a special token out of what the tokenizer says of itself."""
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config[token]
    path.write_text(json.dumps(config))


def no_pad(directory):
    without(a_model(directory), "pad_token")
    return {}


def no_eos(directory):
    without(a_model(directory), "eos_token")
    return {}


def vocabulary_too_large(directory):
    a_model(directory)
    config = LlamaConfig.from_pretrained(directory)
    config.vocab_size = 270
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    return {}


def prompt_too_long(directory):
    a_model(directory, context_length=32)
    return {"prompts": [{"prompt": "where?"}, {"prompt": "where is the red lamp? " * 6}]}


def one_response_in_a_ranking(directory):
    a_model(directory)
    return {"preferences": [{"prompt": "a", "responses": ["b"], "ranks": [1]}]}


def empty_response(directory):
    a_model(directory)
    return {
        "preferences": [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": ""}]
    }


def no_such_layers(directory):
    a_model(directory)
    return {}


# What makes the mistake, and what must be said: where, what, and what to do.
CASES = {
    no_pad: r"the tokenizer of (\S*/no_pad) has no pad token; add \"pad_token\": \"</s>\" to \1/tokenizer_config\.json",
    no_eos: r"the tokenizer of (\S*/no_eos) has no EOS token, .*; add \"eos_token\" to \1/tokenizer_config\.json",
    vocabulary_too_large: r"has \d+ tokens \(.* with id \d+\) but the model's embedding has 270 rows; use the tokenizer",
    prompt_too_long: r"prompts\.jsonl, row 2: a prompt of \d+ tokens with a response of up to 8 .*context is 32; shorten it",
    one_response_in_a_ranking: r"preferences\.jsonl, row 1: .*responses.*at least two",
    empty_response: r"preferences\.jsonl, row 2: .*rejected.*empty",
    # One that there is does not make up for one that there is not.
    no_such_layers: r"model\.lora\.target_modules: 'wings' is no linear layer of \S*/no_such_layers; it has "
    "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj$",
}


# The command takes seconds for what is said at once, so only one mistake of each kind goes through it: one of a model, told
# before a stage begins, and one of the data.
BY_COMMAND = {vocabulary_too_large: "error: model.policy: ", empty_response: "error: data.preferences.0: "}


def overrides_of(case, root):
    """What turns tiny.yaml into a configuration with this mistake."""
    files = {
        "prompts": [{"prompt": "where is the red lamp?"}, {"prompt": "and the blue one?"}],
        "preferences": [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(4)],
        **case(root / case.__name__),
    }
    overrides = [
        f"model={{policy: {root / case.__name__}}}",
        "warm_up=null",
        "data.texts=[]",
        "data.num_held_out_prompts=1",
    ]
    if case is no_such_layers:
        overrides.append("model.lora={target_modules: [q_proj, wings]}")
    for kind, rows in files.items():
        path = root / f"{case.__name__}-data" / f"{kind}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"data.{kind}=[{path}]")
    return overrides


class Executed(Exception):
    """The first stage went through."""


def execute_first_stage(run, config):
    def call(stage, place, settings, **inputs):
        execute(
            stage_call(run, config, stage, place, settings, {}).with_inputs(inputs), ResidentModels(), lambda _: None
        )
        raise Executed

    rlhf_round(call, config, 1, None, external_models(config, run.home))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_first_stage_says_in_one_sentence_where_what_and_how_to_go_on(tmp_path, case):
    run = create_or_open(tmp_path / "home", "run")
    config = load_config(str(TINY), overrides_of(case, tmp_path))
    with pytest.raises(UserError) as caught:
        execute_first_stage(run, config)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(CASES[case], message), message
    assert run.is_empty()


def test_without_a_mistake_the_first_stage_goes_through(tmp_path):
    def sound(directory):
        a_model(directory)
        return {}

    config = load_config(str(TINY), overrides_of(sound, tmp_path))
    with pytest.raises(Executed):
        execute_first_stage(create_or_open(tmp_path / "home", "run"), config)


@pytest.fixture(scope="module")
def answers(home, tmp_path_factory):
    root = tmp_path_factory.mktemp("mistaken")
    processes = {}
    for case in BY_COMMAND:
        arguments = [x for override in overrides_of(case, root) for x in ("--set", override)]
        processes[case] = home.start("run", TINY, "--name", case.__name__, *arguments)
    return {case: (process.communicate(timeout=120)[1], process.returncode) for case, process in processes.items()}


@pytest.mark.parametrize("case", BY_COMMAND, ids=lambda case: case.__name__)
def test_the_command_passes_it_on_with_exit_2_and_leaves_no_run(home, answers, case):
    said, code = answers[case]
    assert code == 2, said
    *progress, told = said.splitlines()
    progress = [line for line in progress if "pages: " not in line]
    # No stage began, and no server was started for one.
    assert progress == []
    assert told.startswith(BY_COMMAND[case])
    assert re.search(CASES[case], told), told
    assert not (home.path / "runs" / case.__name__).exists()
