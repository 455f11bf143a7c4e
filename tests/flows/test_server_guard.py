"""What stands before the home's Prefect server, without the server: which requests it hands on."""

import asyncio

import pytest

from flows.server.guard import Guard

URL = "http://127.0.0.1:4321/api"
HOST = {"host": "127.0.0.1:4321"}
JSON = {"content-type": "application/json", "content-length": "2"}


def passed(method, path="/api/flows/filter", kind="http", **headers):
    """What the guard answers: a status, or "passed" where it hands the request on."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "query_string": b"", "headers": raw}
    asyncio.run(Guard(app, URL, "rounds:secret")(scope, receive, send))
    if seen:
        return "passed"
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("host", ["127.0.0.1:4321", "localhost:4321", "LOCALHOST:4321"])
def test_a_program_that_names_the_server_is_heard(host):
    assert passed("GET", host=host) == "passed"
    assert passed("POST", host=host, **JSON) == "passed"
    assert passed("GET", kind="websocket", host=host) == "passed"


@pytest.mark.parametrize(
    "host", ["evil.example:4321", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:4321.evil.example", "evil@127.0.0.1:4321", ""]
)
def test_a_name_that_somebody_made_resolve_to_this_machine_is_refused(host):
    assert passed("GET", host=host) == 421
    assert passed("GET", kind="websocket", host=host) == 1008


def test_a_request_that_names_no_host_or_two_is_refused():
    assert passed("GET") == 421
    raw = [(b"host", b"127.0.0.1:4321"), (b"host", b"evil.example:4321")]
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw}
    asyncio.run(Guard(None, URL, "s")(scope, None, send))
    assert sent[0]["status"] == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:4322", "https://127.0.0.1:4321", "http://localhost:4321"],
)
def test_pages_of_another_origin_are_refused(origin):
    assert passed("GET", origin=origin, **HOST) == 403
    assert passed("POST", origin=origin, **HOST, **JSON) == 403
    assert passed("OPTIONS", origin=origin, **HOST) == 403
    assert passed("GET", kind="websocket", origin=origin, **HOST) == 1008


def test_its_own_pages_are_served():
    own = {"origin": "http://127.0.0.1:4321", "sec-fetch-site": "same-origin", **HOST}
    assert passed("POST", **own, **JSON) == "passed"
    assert passed("GET", kind="websocket", **own) == "passed"
    assert passed("GET", "/", **{"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, **HOST) == "passed"


def test_a_link_to_its_pages_may_be_followed_but_no_other_request_of_a_foreign_page_is_served():
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", **HOST}
    assert passed("GET", "/runs", **link) == "passed"
    assert passed("POST", **link, **JSON) == 403
    for mode in ("no-cors", "cors", "websocket"):
        assert passed("GET", **{**link, "sec-fetch-mode": mode}) == 403
    assert passed("GET", **{**link, "sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}) == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_what_is_sent_must_be_json(method):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert passed(method, **{"content-type": kind, "content-length": "2"}, **HOST) == 415
    assert passed(method, **{"content-length": "2"}, **HOST) == 415, "Prefect would take it for JSON"
    assert passed(method, **{"transfer-encoding": "chunked"}, **HOST) == 415
    assert (
        passed(method, **{"content-type": "application/json; charset=utf-8", "content-length": "2"}, **HOST) == "passed"
    )
    assert passed(method, **HOST) == "passed", "it carries nothing"


def test_no_page_of_another_origin_can_show_these_in_a_frame():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:4321")],
    }
    asyncio.run(Guard(app, URL, "s")(scope, None, send))
    assert {
        (b"x", b"y"),
        (b"x-frame-options", b"DENY"),
        (b"content-security-policy", b"frame-ancestors 'none'"),
    } == set(sent[0]["headers"])
