"""A stand-in for a vLLM server: it speaks what is documented, and samples from the checkpoint that it is told to load.

It has the fault of the real one that ``tests/engines`` shows (vLLM 0.32 on CPUs): told to load weights again, it keeps its
output head unless the files hold one, and a model with tied embeddings has none in its files.
"""

import http.server
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

ONE_AT_A_TIME = threading.Lock()
"""While transformers loads a model, whatever else this process loads is made without weights."""


class VLLMStandIn:
    """What the server knows and may do, and what it was asked. ``answers`` takes the place of its own, by path, in turn."""

    def __init__(self, directory, **settings):
        self.root = directory and str(directory)
        self.is_vllm = self.dev_mode = self.lora = self.has_head = self.has_labels = True
        self.version, self.label = "0.32.0", "default"
        self.logprobs_mode = "raw_logprobs"
        self.bias = self.bias_of_drawn = 0.0
        self.overrun = 0
        self.adapters = {}
        self.answers = {}
        self.key = None
        self.is_stuck = False
        self.num_busy = 0
        self.head = None
        self.loaded = []
        vars(self).update(settings)
        self.asked = []
        self.lock = threading.Lock()
        if directory:
            self.load(directory)

    def load(self, directory):
        with ONE_AT_A_TIME:
            self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        explicit = head_in(Path(directory))
        if explicit is not None or self.head is None:
            self.head = self.model.lm_head.weight.detach() if explicit is None else explicit
        # The files may be links.
        self.loaded.append(str((Path(directory) / "config.json").resolve().parent))

    def bodies(self, path):
        return [body for asked, body, _ in self.asked if asked == path]

    @property
    def drawn(self):
        """The completions asked for rollouts."""
        return [body for body in self.bodies("/v1/completions") if not is_trial(body)]

    @property
    def tried(self):
        """The completions asked to see whether the server holds the policy."""
        return [body for body in self.bodies("/v1/completions") if is_trial(body)]

    def paths(self):
        return [path for path, _, _ in self.asked]

    def answer(self, path, body, headers):
        with self.lock:
            self.asked.append((path, body, headers))
            if self.answers.get(path) and not (path == "/v1/completions" and is_trial(body)):
                return self.answers[path].pop(0)
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/v1/completions":
            return self.complete(body)
        routes = {"/v1/models": self.models}
        if self.is_vllm:
            routes["/version"] = lambda body: (200, {"version": self.version})
        if self.dev_mode:
            routes |= {"/collective_rpc": self.collective_rpc, "/reset_prefix_cache": self.reset_prefix_cache}
            if self.has_labels:
                routes["/weight_info"] = lambda body: (200, {"weight_version": self.label})
                routes["/update_weight_version"] = self.update_weight_version
        if self.lora:
            routes |= {"/v1/load_lora_adapter": self.load_adapter, "/v1/unload_lora_adapter": self.unload_adapter}
        return routes[path](body) if path in routes else (404, {"detail": "Not Found"})

    def models(self, body):
        base = {"id": "base", "object": "model", "root": self.root, "parent": None}
        adapters = [{"id": name, "root": path, "parent": "base"} for name, path in self.adapters.items()]
        return 200, {"object": "list", "data": [base, *adapters]}

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        directory = body["kwargs"]["weights_path"]
        if not self.has_head:
            if head_in(Path(directory)) is not None:
                return 500, "There is no module or parameter named 'lm_head'"
            self.head = None
        if not self.is_stuck:
            self.load(directory)
        return 200, {"results": [None]}

    def reset_prefix_cache(self, body):
        """Fails, with 200, as often as ``num_busy``: the real one does while it answers somebody."""
        self.num_busy -= 1
        return 200, {"success": self.num_busy < 0}

    def update_weight_version(self, body):
        self.label = body["new_version"]
        return 200, {"success": True, "new_version": self.label}

    def load_adapter(self, body):
        if not Path(body["lora_path"]).exists():
            return 404, {"error": {"message": f"No adapter found for {body['lora_path']}", "type": "NotFoundError"}}
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, "Success: LoRA adapter added successfully."

    def unload_adapter(self, body):
        del self.adapters[body["lora_name"]]
        return 200, "Success: LoRA adapter removed successfully."

    @torch.no_grad()
    def complete(self, body):
        generator = torch.Generator().manual_seed(body["seed"])
        ids, logprobs, reason, after_stop = [], [], "length", 0
        while len(ids) < body["max_tokens"] and after_stop <= self.overrun:
            hidden = self.model.base_model(torch.tensor([body["prompt"] + ids])).last_hidden_state
            z = hidden[0, -1] @ self.head.T
            tempered = (z / body["temperature"]).log_softmax(-1)
            token = int(torch.multinomial(tempered.exp(), 1, generator=generator))
            reported = tempered if self.logprobs_mode == "processed_logprobs" else z.log_softmax(-1)
            ids.append(token)
            logprobs.append(float(reported[token]) + self.bias + self.bias_of_drawn * (not is_trial(body)))
            text = self.tokenizer.decode(ids)
            if token in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                reason = "stop"
            after_stop += reason == "stop"
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(ids),
            "finish_reason": reason,
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": logprobs, "tokens": [], "top_logprobs": [], "text_offset": []},
        }
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice]}


def is_trial(body):
    """Whether nothing ends a response but its length, not even EOS."""
    return not body["stop_token_ids"]


def head_in(directory):
    """The output head in a checkpoint's files, read as vLLM reads them; None where they have none."""
    index = directory / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else None
    for path in directory.glob("*.safetensors"):
        if named is None or path.name in named:
            with safe_open(path, "pt") as file:
                if "lm_head.weight" in file.keys():  # noqa: SIM118  not a dictionary
                    return file.get_tensor("lm_head.weight")
    return None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def respond(self):
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        answer = self.server.stand_in.answer(self.path, body, {k.lower(): v for k, v in self.headers.items()})
        if answer is None:
            self.close_connection = True
            return
        status, said = answer
        encoded = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = respond

    def log_message(self, *_):
        pass


@contextmanager
def serving(directory=None, **settings):
    """The stand-in with the address that it listens at; without a directory it has no weights before it is given some."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.stand_in = VLLMStandIn(directory, **settings)
        server.stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.stand_in
        server.shutdown()
