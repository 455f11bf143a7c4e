"""What stands before the embedded Prefect server: who may talk to it at all, and how it proves that it is this home's.

Prefect itself checks the authentication string, of every request to its interface but the health check, and of every
websocket. A web page, however, can make a browser send requests that the page may not read, or have a name of its own
resolve to this machine (DNS rebinding). So a request must name the server's own address as host, come from its own pages
or from no page at all, and carry JSON where it carries anything.
"""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
IDENTITY_PATH = "/rounds/identity"
WITH_A_BODY = ("POST", "PUT", "PATCH", "DELETE")
# No page may show these ones in a frame of its own, to have their buttons clicked.
UNFRAMED = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]


def proof_of(secret: str, nonce: str, url: str) -> str:
    """What only a server that knows the home's secret can answer: a digest of what it is asked, and of its address."""
    return hmac.new(secret.encode(), f"{nonce}\n{url}".encode(), hashlib.sha256).hexdigest()


class Guard:
    """An ASGI application in front of another one that listens at ``url`` (http://127.0.0.1:PORT/api)."""

    def __init__(self, app: App, url: str, secret: str) -> None:
        self._app = app
        self._url = url
        self._secret = secret
        port = url.rsplit(":", 1)[1].split("/")[0]
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["type"] == "websocket":
            if refusal is None:
                await self._app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
        elif refusal is not None:
            await answer(send, refusal[0], {"detail": refusal[1]})
        elif scope["path"] == IDENTITY_PATH:
            nonce = parse_qs(scope["query_string"].decode("latin-1")).get("nonce", [""])[0]
            await answer(send, 200, {"proof": proof_of(self._secret, nonce, self._url)})
        else:
            await self._app(scope, receive, unframed(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, where a request is not to be passed on."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1").strip().lower())
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 421, "this server has another name"
        if any(origin != f"http://{hosts[0]}" for origin in headers.get(b"origin", [])):
            return 403, "pages of other origins are not served"
        is_cross = any(site not in ("same-origin", "none") for site in headers.get(b"sec-fetch-site", []))
        # A link to the pages may be followed from anywhere.
        if is_cross and not (scope.get("method") == "GET" and headers.get(b"sec-fetch-mode") == ["navigate"]):
            return 403, "pages of other origins are not served"
        has_body = headers.get(b"content-length", ["0"]) != ["0"] or b"transfer-encoding" in headers
        types = [value.partition(";")[0].strip() for value in headers.get(b"content-type", [])]
        # A page may send any other type without asking first.
        if scope.get("method") in WITH_A_BODY and (types or has_body) and types != ["application/json"]:
            return 415, "the content must be application/json"
        return None


def unframed(send: Send) -> Send:
    """Sends answers on with the headers that keep pages out of frames."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *UNFRAMED]}
        await send(message)

    return sending


async def answer(send: Send, status: int, content: Any) -> None:
    """A whole answer of JSON."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
