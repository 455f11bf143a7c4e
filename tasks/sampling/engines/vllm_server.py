"""A vLLM server: requests to it, and what their failures mean.

What is spoken, each as vLLM documents it:

    GET  /version                 whether it is vLLM, and which; any other server is asked for a checkpoint by its directory
    GET  /v1/models               the name of the served model, and which adapters are loaded
    POST /v1/completions          one row a request: token ids in, token ids and their log-probabilities out
    GET  /weight_info             the label of the weights; needs VLLM_SERVER_DEV_MODE=1, as do the next three
    POST /update_weight_version   to set the label
    POST /collective_rpc          reload_weights of a checkpoint's directory
    POST /reset_prefix_cache      to forget what it remembers of prompts under other weights
    POST /v1/load_lora_adapter    an adapter's directory; needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, as does
    POST /v1/unload_lora_adapter  of the checkpoints before

It has to see the run's directory: nothing but its name is sent.
"""

import math
import time
from pathlib import Path
from typing import Any, Self, TypeGuard

import httpx

from tasks import environment
from tasks.config import server_address, untested_vllm
from tasks.errors import ServerError, TransientError, UnreachableError, shorten
from tasks.sampling.engines.vllm_rows import Row

FIELD = "execution.engine_servers"
CONCURRENT_REQUESTS = 128
"""A server batches what it is asked at the same time."""
# Where one row of thousands meets a closed connection, asking again costs a moment; the stage anew costs all rows.
DELAYS_S = (0.5, 1.0)
# A request may wait for its turn behind others, and weights for a slow disk.
_TIMEOUT = httpx.Timeout(10, read=600, write=60, pool=None)
_BUSY = (429, 503)


class Server:
    """Requests to the server, and what their failures mean: worth another attempt, or something that the user mends."""

    def __init__(self, url: str) -> None:
        self.url = server_address(url)
        key = environment.engine_api_key()
        self._client = httpx.Client(
            base_url=self.url,
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
        return f"{FIELD} {self.url}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, advice: str = "") -> httpx.Response:
        """The server's answer, whatever it is, but for what may pass by itself."""
        response: httpx.Response | None = None
        for delay in (*DELAYS_S, None):
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
        return self._object(path, self.need(method, path, body, advice=advice))

    def _object(self, path: str, response: httpx.Response) -> dict[str, Any]:
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

    def version(self) -> str | None:
        """The version of vLLM, which has to be one that was tested; None for a server that is not vLLM."""
        answer = self.ask("GET", "/version")
        if answer.status_code == 404:
            return None
        version = self._object("/version", self.granted(answer, advice="name a vLLM server")).get("version")
        if mistake := untested_vllm(str(version)):
            raise ServerError(f"{self}: {mistake}")
        return str(version)

    def reload(self, directory: Path, *, advice: str) -> bool:
        """Whether the server can load weights; then it has those in ``directory``."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
        answer = self.ask("POST", "/collective_rpc", body, advice=advice)
        if answer.status_code == 404:
            return False
        self.granted(answer, advice=advice)
        return True

    def label(self) -> str | None:
        """What the server says of its weights: the label that was set last. None for a server without labels."""
        answer = self.ask("GET", "/weight_info")
        if answer.status_code == 404:
            return None
        label = self._object("/weight_info", self.granted(answer, advice="restart it")).get("weight_version")
        return str(label)

    def set_label(self, label: str) -> bool:
        """Whether the server has labels; then it has this one from now on."""
        answer = self.ask("POST", "/update_weight_version", {"new_version": label})
        if answer.status_code == 404:
            return False
        self.granted(answer, advice="restart it")
        return True

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

    def _unreachable(self, method: str, path: str, error: Exception) -> UnreachableError:
        return UnreachableError(
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
