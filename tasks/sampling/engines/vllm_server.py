"""A vLLM server as the engine: checkpoints pushed to it as directories, prompts and responses as token ids.

What is spoken, each as vLLM documents it:

    GET  /version                 whether it is vLLM; any other server is asked for a checkpoint by its directory's name
    GET  /v1/models               the name of the served model, and which adapters are loaded
    POST /collective_rpc          reload_weights of a checkpoint's directory; needs VLLM_SERVER_DEV_MODE=1, as does
    POST /reset_prefix_cache      to forget what it remembers of prompts under other weights
    POST /v1/load_lora_adapter    an adapter's directory; needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, as does
    POST /v1/unload_lora_adapter  of the checkpoints before
    POST /v1/completions          one row a request: token ids in, token ids and their log-probabilities out

A server holds one policy at a time, so it serves one run at a time, and it has to see the run's directory: nothing but its
name is sent. Every stage pushes what it samples from, since a server does not say which weights it holds.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeGuard

import httpx
import torch

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks import environment
from tasks.errors import ServerError, TransientError, shorten
from tasks.sampling.engines.policy_files import PolicyFiles
from tasks.sampling.engines.vllm_rows import Ended, Row, as_batch, ended, sampling_parameters

FIELD = "execution.engine_server"
CONCURRENT_REQUESTS = 128
"""The server batches what it is asked at the same time."""
# A request may wait for its turn behind others, and weights for a slow disk.
_TIMEOUT = httpx.Timeout(10, read=600, write=60, pool=None)
# Where one row of thousands meets a closed connection, asking again costs a moment; the stage anew costs all rows.
_DELAYS_S = (0.5, 1.0)
_BUSY = (429, 503)
_ADAPTER_PREFIX = "rlhf-rounds-"


@contextmanager
def vllm_server(url: str, policy: PolicyFiles) -> Iterator["VLLMServer"]:
    """The server at ``url``, once it holds the policy."""
    with Server(url) as server:
        yield VLLMServer(server, push(server, policy))


class VLLMServer:
    """Samples by a server, which knows the policy by the name of ``model``."""

    def __init__(self, server: "Server", model: str) -> None:
        self._server = server
        self._model = model

    def draw(
        self,
        prompts: Ragged,
        *,
        samples_per_prompt: int,
        sampling: SamplingConfig,
        stop_strings: tuple[str, ...],
        should_stop: Callable[[list[int]], bool] | None,
        seeds: Sequence[int],
        on_rows: Callable[[int, int], None],
    ) -> RolloutBatch:
        prompts = prompts.select(torch.arange(len(seeds)) // samples_per_prompt)
        rows: dict[int, Ended] = {}
        tokens = 0

        def draw_row(i: int) -> Ended:
            parameters = sampling_parameters(sampling, stop_strings, seeds[i])
            row = self._server.complete({"model": self._model, "prompt": prompts.row(i).tolist(), **parameters})
            return ended(row, sampling, should_stop, engine=str(self._server))

        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(seeds))) as pool:
            futures = {pool.submit(draw_row, i): i for i in range(len(seeds))}
            try:
                for future in as_completed(futures):
                    row = rows[futures[future]] = future.result()
                    tokens += len(row.token_ids)
                    on_rows(len(rows), tokens)
            finally:
                # After an error, what was not asked yet is not asked any more.
                pool.shutdown(cancel_futures=True)
        return as_batch([rows[i] for i in range(len(seeds))], prompts)


class Server:
    """Requests to the server, and what their failures mean: worth another attempt, or something that the user mends."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        key = environment.engine_api_key()
        self._client = httpx.Client(
            base_url=self._url,
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=CONCURRENT_REQUESTS),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # The address is the user's; no proxy and no .netrc of the machine comes between.
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __str__(self) -> str:
        return f"{FIELD}={self._url}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, advice: str = "") -> httpx.Response:
        """The server's answer, whatever it is, but for what may pass by itself."""
        response: httpx.Response | None = None
        for delay in (*_DELAYS_S, None):
            try:
                response = self._client.request(method, path, json=body)
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                if delay is None:
                    raise self._unreachable(method, path, error) from error
            except httpx.HTTPError as error:
                raise self._unreachable(method, path, error) from error
            else:
                if response.status_code not in _BUSY:
                    break
            if delay is not None:
                time.sleep(delay)
        assert response is not None
        if response.status_code >= 500 or response.status_code in (408, 429):
            raise TransientError(f"{self}: {method} {path} was answered {reason(response)}{advice and f'; {advice}'}")
        return response

    def need(self, method: str, path: str, body: dict[str, Any] | None = None, *, advice: str) -> httpx.Response:
        """The server's answer where it grants what it is asked; ``advice`` is the next move where it does not."""
        return self.granted(self.ask(method, path, body, advice=advice), advice=advice)

    def granted(self, response: httpx.Response, *, advice: str) -> httpx.Response:
        if response.status_code in (401, 403):
            advice = "set ROUNDS_ENGINE_API_KEY to its key"
        if response.status_code != 200:
            request = f"{response.request.method} {response.request.url.path}"
            raise ServerError(f"{self}: {request} was refused with {reason(response)}; {advice}")
        return response

    def json(self, method: str, path: str, body: dict[str, Any] | None = None, *, advice: str) -> dict[str, Any]:
        response = self.need(method, path, body, advice=advice)
        try:
            answer = response.json()
        except ValueError as error:
            raise self._misunderstood(path, "no JSON", response.text) from error
        if not isinstance(answer, dict):
            raise self._misunderstood(path, "no object", answer)
        return answer

    def cards(self) -> list[dict[str, Any]]:
        """The models that the server has, adapters included."""
        answer = self.json("GET", "/v1/models", advice="name an OpenAI-compatible server")
        cards = answer.get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
            raise self._misunderstood("/v1/models", "no list of models", answer)
        return cards

    def complete(self, body: dict[str, Any]) -> Row:
        """One response to a prompt of token ids."""
        path = "/v1/completions"
        body = {**body, "n": 1, "return_token_ids": True}
        answer = self.json("POST", path, body, advice="it has to take and to give token ids, as vLLM does")
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._misunderstood(path, "not the one choice that was asked for", answer)
        choice = choices[0]
        token_ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        logprobs = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not is_numbers(token_ids, int):
            raise self._misunderstood(path, "no token ids of the response", choice)
        if not is_numbers(logprobs, int, float) or not all(math.isfinite(x) for x in logprobs):
            raise self._misunderstood(path, "no log-probabilities of the response's tokens", choice)
        if (choice.get("prompt_token_ids") or body["prompt"]) != body["prompt"]:
            raise self._misunderstood(path, "a response to another prompt than it was given", choice)
        return Row(token_ids, [float(x) for x in logprobs], choice.get("finish_reason"))

    def _unreachable(self, method: str, path: str, error: Exception) -> TransientError:
        return TransientError(
            f"{self}: {method} {path} was not answered ({type(error).__name__}: {error}); start the server, or correct the "
            "address"
        )

    def _misunderstood(self, path: str, what: str, answer: Any) -> ServerError:
        return ServerError(f"{self}: {path} answered {what} ({shorten(answer)}); a vLLM server is expected there")


def is_numbers(value: Any, *kinds: type) -> TypeGuard[list[Any]]:
    """Whether a value of JSON is a list of numbers of these kinds; true and false are none."""
    return isinstance(value, list) and all(isinstance(x, kinds) and not isinstance(x, bool) for x in value)


def reason(response: httpx.Response) -> str:
    """The status of a failure, and the server's words for it where it has some."""
    try:
        answer = response.json()
        said = answer.get("error") or answer.get("detail") or answer.get("message") or ""
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = response.text
    words = " ".join(str(said).split())
    return f"{response.status_code}" + (f" ({words[:200]})" if words else "")


def push(server: Server, policy: PolicyFiles) -> str:
    """Have the server sample from a policy from now on; the name to ask for it by."""
    version = server.ask("GET", "/version")
    if version.status_code == 404:
        return str(policy.directory)
    server.granted(version, advice="name a vLLM server")
    cards = server.cards()
    return _push_adapter(server, cards, policy) if policy.is_adapter else _push_weights(server, cards, policy)


def _push_weights(server: Server, cards: list[dict[str, Any]], policy: PolicyFiles) -> str:
    served = [card for card in cards if not card.get("parent")]
    if not served:
        raise ServerError(f"{server}: it serves no model; start it with the model that the run starts from")
    advice = f"it has to see {policy.directory}, whose model must be of the shape of the one that it serves"

    def reload(directory: Path) -> httpx.Response:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
        return server.ask("POST", "/collective_rpc", body, advice=advice)

    try:
        with policy.with_tied_weights() as directory:
            response = reload(directory)
    except TransientError:
        # Some of its models read the embedding where they need a head, and refuse one.
        if not policy.tied:
            raise
        response = reload(policy.directory)
    if response.status_code == 404:
        # Nobody can have replaced the weights of such a server: it has those that it was started with.
        if served[0].get("root") and Path(served[0]["root"]).resolve() == policy.directory:
            return str(served[0]["id"])
        raise ServerError(
            f"{server}: it cannot load the weights in {policy.directory}; start it with VLLM_SERVER_DEV_MODE=1, or with "
            "that directory as its model if only adapters change"
        )
    server.granted(response, advice=advice)
    # It has keys and values of prompts under the weights before.
    reset = server.need("POST", "/reset_prefix_cache", advice="start it with VLLM_SERVER_DEV_MODE=1")
    if '"success":false' in reset.text.replace(" ", ""):
        raise TransientError(
            f"{server}: it keeps its prefix cache while it answers others; it serves one run at a time"
        )
    return str(served[0]["id"])


def _push_adapter(server: Server, cards: list[dict[str, Any]], policy: PolicyFiles) -> str:
    # An adapter's name says what it holds: one that is there is the right one, and no cache confuses two.
    name = f"{_ADAPTER_PREFIX}{policy.digest}"
    loaded = {str(card["id"]) for card in cards}
    if name not in loaded:
        server.need(
            "POST",
            "/v1/load_lora_adapter",
            {"lora_name": name, "lora_path": str(policy.directory)},
            advice=(
                f"start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, where it can see {policy.directory}, "
                "over the model that the adapter belongs to"
            ),
        )
    for other in sorted(loaded - {name}):
        if other.startswith(_ADAPTER_PREFIX):
            server.need("POST", "/v1/unload_lora_adapter", {"lora_name": other}, advice="restart it")
    return name
