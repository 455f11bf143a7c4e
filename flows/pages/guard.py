"""Who may read the pages: whoever has the token, from an address of ours, on no other site's behalf.

Other users of this machine reach 127.0.0.1 too, and so does every page that a browser here has open. The first need the
token, which only the owner of the home can read; for the second, ``Host`` and ``Origin`` must be ours. An annotator has a
token of their own, which opens the pages of one queue and nothing else.
"""

import hmac
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_FILE = "ui/token"
ANSWERS, STATIC = "label", "static"
"""The first part of the path of an annotator's pages, and of what all pages are drawn with."""
People = Callable[[str], Mapping[str, str]]
"""The annotators of a queue, each with the token of their link; none where there is no such queue."""
HEADERS = {
    # Plotly draws with style attributes and with images of its own.
    "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Without a referrer to its own site, a browser says of a form that it comes from nowhere, and the form is refused.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def token_of(home: Path) -> str:
    """The home's token, made where there is none; readable by its owner alone."""
    path = home / TOKEN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if token := path.read_text().strip():
            return token
        # Whoever made it was stopped before it was written.
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    with os.fdopen(descriptor, "w") as stream:
        token = secrets.token_urlsafe(24)
        stream.write(token)
    return token


class Guard:
    """An application in front of the pages that lets through what may be read."""

    def __init__(self, pages: ASGIApp, *, token: str, hosts: Sequence[str], port: int, people: People) -> None:
        self._pages = pages
        self._people = people
        self._token = token
        self._hosts = hosts
        self._port = port
        # Cookies do not tell ports apart, and two homes may be looked at.
        self._cookie = f"rounds-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refused = self._refused(headers) or self._not_let_in(scope, headers)
            await (refused or self._pages)(scope, receive, with_headers(send))
        elif scope["type"] == "lifespan":
            await self._pages(scope, receive, send)

    def _refused(self, headers: Headers) -> Response | None:
        """What comes by another name than ours, or for a page of another origin."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return sentence(f"{host!r} is no address of these pages; open the one that rounds ui printed", 421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return sentence(f"a page of {origin!r} may not read or write here; open the address in the browser", 403)
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and mode != "navigate":
            return sentence("a page of another origin may not read or write here; open the address in the browser", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        parts = urlsplit(f"//{host}")
        try:
            port = parts.port
        except ValueError:
            return False
        name = parts.hostname or ""
        return port in (self._port, None) and (name in self._hosts or ("*" in self._hosts and is_own_name(name)))

    def _not_let_in(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to who may not see this, or a redirection to it without the token; None for who may.

        A token in the address becomes a cookie, so that no address that is copied has it.
        """
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for name, value in query if name == "token"), None)
        cookies = cookie_parser(headers.get("cookie", ""))
        first, queue = [*scope["path"].split("/"), "", ""][1:3]
        if first == ANSWERS:
            cookie, people = f"{self._cookie}-{queue}", self._people(queue)
            if not people:
                return sentence("there is no such queue, or no more; ask whoever gave you the link", 404)
            scope["annotator"] = next((name for name, own in people.items() if is_same(own, given or "")), None)
            if given is None:
                scope["annotator"] = self._annotator(cookies, queue)
            is_known = scope["annotator"] is not None
            whose = "an annotator of this queue; open the link that you were given"
        else:
            cookie = self._cookie
            known = (cookies.get(cookie, ""), bearer(headers)) if given is None else (given,)
            is_known = any(is_same(self._token, one) for one in known)
            whose = "the home; open the address that rounds ui printed"
            if first == STATIC and not is_known:
                queues = [name.removeprefix(f"{cookie}-") for name in cookies if name.startswith(f"{cookie}-")]
                is_known = any(self._annotator(cookies, name) for name in queues)
        if not is_known:
            what = "this needs the token" if given is None else "the token in this address is not that"
            return sentence(f"{what} of {whose}", 401)
        if given is None:
            return None
        if scope["method"] not in ("GET", "HEAD"):
            return sentence("a token in an address is for reading; open the page first", 401)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), status_code=303)
        answer.set_cookie(cookie, given, max_age=365 * 86400, httponly=True, samesite="lax")
        return answer

    def _annotator(self, cookies: Mapping[str, str], queue: str) -> str | None:
        """Whose cookie it is."""
        cookie = cookies.get(f"{self._cookie}-{queue}", "")
        return next((name for name, token in self._people(queue).items() if is_same(token, cookie)), None)


def is_same(token: str, text: str) -> bool:
    return hmac.compare_digest(text.encode(), token.encode())


def bearer(headers: Headers) -> str:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def is_own_name(name: str) -> bool:
    """Whether a name is one that only this machine goes by; a number cannot be made to lead elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return name in ("localhost", socket.gethostname().lower(), socket.getfqdn().lower())
    return True


def sentence(text: str, status: int) -> Response:
    return Response(f"{text}\n", status_code=status, media_type="text/plain")


def with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message["headers"]}
            more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return sending
