"""What the owner does on a page: a queue is made, somebody invited, a note kept. Nothing of a run is written."""

from collections.abc import Callable
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from flows.addresses import page_path
from flows.labels import WAYS, find_queue
from flows.labels.make import Wish, make_from_run
from flows.pages.site import Asked, Site
from flows.runs import keep_note, remove_note
from tasks.errors import ConfigError, DamagedError, UserError

LARGEST_FORM = 20_000
Refused = Callable[[Exception], tuple[str, int]]


def action_routes(site: Site, refused: Refused) -> list[Route]:
    """The forms of the pages; ``refused`` makes a page of a mistake."""

    def route(path: str, act: Callable[[Site, Asked], str]) -> Route:
        async def endpoint(request: Request) -> Response:
            if int(request.headers.get("content-length", 0)) > LARGEST_FORM:
                return HTMLResponse("a form of this size is none of ours\n", 413)
            form = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
            asked = Asked(path=dict(request.path_params), query=form)

            def done() -> Response:
                try:
                    return RedirectResponse(act(site, asked), status_code=303)
                except (UserError, DamagedError, OSError) as error:
                    text, status = refused(error)
                    return HTMLResponse(text, status_code=status)

            return await run_in_threadpool(done)

        return Route(path, endpoint, methods=["POST"])

    return [
        route("/labels", make),
        route("/labels/{queue}/people", invite),
        route("/notes", keep),
        route("/notes/{note_id}/remove", remove),
    ]


def make(site: Site, asked: Asked) -> str:
    """A queue of a run's last round; its page is what comes next."""
    run = site.run(asked.text("run"))
    wish = Wish(
        prompts=asked.number("prompts", 100, low=1, high=100_000),
        candidates=asked.number("candidates", 4, low=2, high=9),
        by=next(way for way in WAYS if way == asked.one_of("by", WAYS, WAYS[0])),
        annotators=asked.number("annotators", 1, low=1, high=100),
    )
    if run.home != site.homes[0]:
        raise ConfigError(f"run {asked.text('run')} is of another home; start rounds ui there to ask about it")
    queue, _ = make_from_run(run, wish)
    return page_path("labels", queue.name)


def invite(site: Site, asked: Asked) -> str:
    """A link for one more person."""
    queue = find_queue(site.homes[0], asked.path["queue"])
    queue.invite([asked.text("name")])
    return page_path("labels", queue.name)


def keep(site: Site, asked: Asked) -> str:
    """A note about a page, to which it goes back."""
    return keep_note(site.homes[0], asked.text("about"), asked.text("text")).address


def remove(site: Site, asked: Asked) -> str:
    """A note goes off the pages."""
    remove_note(site.homes[0], asked.path["note_id"])
    return page_path("notes", about=asked.text("about"))
