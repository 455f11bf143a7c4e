"""The protocol against a real server that speaks it: `transformers serve` loads models by name, but gives no token ids."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from direct_run import run_directly
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from flows.config.reading import load_config
from ppo_core import Ragged, SamplingConfig
from tasks.config.data import FromScratchConfig
from tasks.data.shapes.records import Text
from tasks.errors import ServerError, TransientError
from tasks.models.from_scratch import make_model
from tasks.sampling.engines.policy_files import PolicyFiles
from tasks.sampling.engines.vllm_push import push
from tasks.sampling.engines.vllm_rows import sampling_parameters
from tasks.sampling.engines.vllm_server import Server
from tasks.sampling.engines.vllm_servers import vllm_servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs pip install 'transformers[serving]'"),
]
TEXTS = [f"the {a} lamp is on the {b}. thank you" for a in ("red", "blue", "green") for b in ("table", "floor", "door")]
PROMPT = "the red lamp is"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random models of one tokenizer."""
    shape = FromScratchConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    texts = [Text(prompt=None, response=text, place="") for text in TEXTS]
    directories = [tmp_path_factory.mktemp("models") / name for name in ("one", "two")]
    for seed, directory in enumerate(directories):
        make_model(directory, shape, texts, seed=seed)
        model = AutoModelForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            # As it begins, such a model says the last token again and again.
            for parameter in model.parameters():
                parameter.mul_(8)
        model.save_pretrained(directory)
    return directories


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    (home / "hub").mkdir()
    log = home / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("transformers"),
                "serve",
                "--device=cpu",
                "--dtype=float32",
                f"--port={port}",
            ],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def asked(server, model, **changes):
    """Our request as far as this server knows its fields, with the prompt as text."""
    parameters = sampling_parameters(SamplingConfig(max_new_tokens=6), (), seed=11)
    known = {name: parameters[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
    body = {"model": model, "prompt": PROMPT, **known, **changes}
    return server.json("POST", "/v1/completions", body, advice="")["choices"]


def files(directory):
    return PolicyFiles(directory=directory, digest="", tied={}, scratch=directory.parent)


def test_a_checkpoint_is_asked_for_by_its_directory(url, models):
    texts = []
    for directory in models:
        with Server(url) as server:
            name = push(server, files(directory))
            (choice,) = asked(server, name, temperature=0.0)
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(directory).eval(),
            AutoTokenizer.from_pretrained(directory),
        )
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        with torch.no_grad():
            for _ in range(6):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        texts.append(choice["text"])
        assert choice["text"] == tokenizer.decode(ids[0, -6:], skip_special_tokens=True)
        assert choice["finish_reason"] == "length"
    assert texts[0] != texts[1]


def test_its_list_of_models_is_understood(url):
    with Server(url) as server:
        assert server.cards() == []


def test_a_rollout_is_refused_since_it_takes_no_token_ids(url, models):
    with vllm_servers([url], files(models[0]), pytest.fail) as engine, pytest.raises(ServerError) as caught:
        engine.draw(
            Ragged.from_rows([[5, 6, 7]], torch.int64),
            samples_per_prompt=1,
            sampling=SamplingConfig(max_new_tokens=4),
            stop_strings=(),
            should_stop=None,
            seeds=[1],
            on_rows=lambda rows, tokens: None,
        )
    message = str(caught.value)
    assert message.startswith(
        f"execution.engine_servers {url}: POST /v1/completions was refused with 422 (Unexpected fields"
    )
    assert message.endswith("; it has to take and to give token ids, as vLLM does")


def test_a_prompt_of_token_ids_alone_is_what_it_refuses(url, models):
    with Server(url) as server, pytest.raises(ServerError, match=r"refused with 400 \(prompt must be a string\.\)"):
        asked(server, str(models[0]), prompt=[5, 6, 7])


def test_a_directory_that_it_cannot_load_is_worth_another_attempt_like_any_failure_of_a_server(url, models):
    with Server(url) as server, pytest.raises(TransientError, match="POST /v1/completions was answered 500"):
        asked(server, str(models[0].parent / "gone"))


def test_a_whole_run_stops_with_the_same_sentence(url, tmp_path):
    tiny = str(Path(__file__).parent / "tiny.yaml")
    config = load_config(tiny, ["rounds=1", "rollouts.engine=vllm", f"execution.engine_servers=[{url}]"])
    with pytest.raises(ServerError, match="it has to take and to give token ids, as vLLM does"):
        run_directly(tmp_path, "run", config)
