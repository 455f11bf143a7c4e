"""The web application: one table of pages, each as HTML and, below ``/json``, as the facts that it shows."""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from flows.labels import find_queue
from flows.pages.actions import action_routes
from flows.pages.answers import annotator_routes
from flows.pages.guard import Guard
from flows.pages.pages import PAGES, Page
from flows.pages.rendering import finite, render
from flows.pages.site import Asked, Site
from flows.pages.trackers import Trackers
from tasks.charts import plotly_script
from tasks.errors import DamagedError, RunError, TransientError, UserError
from tasks.paths import os_error_sentence

HERE = Path(__file__).parent
LOG = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]


def application(site: Site, *, token: str, hosts: Sequence[str], port: int) -> ASGIApp:
    """The pages of some homes, for who has the token; those of a queue for its annotators."""
    home = site.homes[0]
    writing = [] if site.is_read_only else [*action_routes(site, partial(refused, site)), *annotator_routes(home)]
    if site.trackers is not None:
        writing += mlflow_routes(site, site.trackers)
    routes = [
        *writing,
        *(Route(page.path, html_of(site, page)) for page in PAGES),
        *(Route(f"/json{page.path}".rstrip("/"), json_of(site, page)) for page in PAGES),
        Route("/static/plotly.js", plotly),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    pages = Starlette(routes=routes, exception_handlers={HTTPException: not_found, Exception: defect})
    return Guard(pages, token=token, hosts=hosts, port=port, people=partial(people_of_queue, home))


def people_of_queue(home: Path, name: str) -> Mapping[str, str]:
    """The annotators of a queue with their tokens; none where there is no such queue."""
    try:
        return find_queue(home, name).people()
    except UserError:
        return {}


def refused(site: Site, error: Exception) -> tuple[str, int]:
    return error_text(site, *told(error))


def html_of(site: Site, page: Page) -> Endpoint:
    """The endpoint of a page as people see it."""

    async def endpoint(request: Request) -> Response:
        def make() -> tuple[str, int]:
            asked = asked_of(request)
            try:
                return page_text(site, page, asked), 200
            except (UserError, DamagedError, OSError) as error:
                return mistaken_text(site, page, asked, *told(error))

        text, status = await run_in_threadpool(make)
        return HTMLResponse(text, status_code=status, headers={"cache-control": "no-store"})

    return endpoint


def json_of(site: Site, page: Page) -> Endpoint:
    """The endpoint of what a page shows, for programs."""

    async def endpoint(request: Request) -> Response:
        def make() -> tuple[dict[str, Any], int]:
            try:
                return page.facts(site, asked_of(request)), 200
            except (UserError, DamagedError, OSError) as error:
                sentence, status = told(error)
                return {"error": sentence}, status

        facts, status = await run_in_threadpool(make)
        text = json.dumps(finite(facts), ensure_ascii=True, default=str)
        return Response(text, status, headers={"cache-control": "no-store"}, media_type="application/json")

    return endpoint


def mlflow_routes(site: Site, trackers: Trackers) -> list[Route]:
    """The page that leads to MLflow's, and the button on it that starts MLflow's server."""

    def page(mistake: str = "", status: int = 200) -> Response:
        own = {"mistake": mistake, "is_elsewhere": trackers.is_elsewhere, "is_read_only": site.is_read_only}
        facts = {"page": "mlflow", **own}
        return HTMLResponse(
            render("mlflow.html", {**frame(site, Asked()), **facts}), status, headers={"cache-control": "no-store"}
        )

    async def shown(request: Request) -> Response:
        del request
        return await run_in_threadpool(page)

    async def started(request: Request) -> Response:
        del request
        try:
            await run_in_threadpool(trackers.start_mlflow)
        except TransientError as error:
            return await run_in_threadpool(page, str(error), 503)
        return RedirectResponse("/mlflow", status_code=303)

    # MLflow's server writes its database.
    starting = [] if site.is_read_only else [Route("/mlflow", started, methods=["POST"])]
    return [Route("/mlflow", shown), *starting]


def asked_of(request: Request) -> Asked:
    query = request.query_params
    repeated = {name: tuple(query.getlist(name)) for name in query}
    address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return Asked(path=dict(request.path_params), query=dict(query), repeated=repeated, address=address)


def page_text(site: Site, page: Page, asked: Asked) -> str:
    """A page as HTML.

    Raises:
        UserError, DamagedError, OSError: what cannot be shown, and why.
    """
    return render(page.template, {**frame(site, asked), "page": page.name, **page.facts(site, asked)})


def frame(site: Site, asked: Asked) -> dict[str, Any]:
    """What every page shows around its own."""
    from flows.pages.facts.notes import number_about
    from flows.pages.facts.runs import rail

    own = site.trackers
    trackers = {} if own is None else {"MLflow": own.mlflow or "/mlflow", "Prefect": own.prefect}
    # Files have no place where a note of theirs would go.
    own_notes = {"about": asked.address, "number": number_about(site, asked.address)} if asked.address else None
    return {"rail": rail(site), "trackers": trackers, "run": asked.path.get("run"), "own_notes": own_notes}


def told(error: Exception) -> tuple[str, int]:
    """A sentence about what cannot be shown, and the status that says whose mistake it is."""
    if isinstance(error, OSError):
        return os_error_sentence(error), 500
    status = 404 if isinstance(error, RunError) else 400 if isinstance(error, UserError) else 500
    return str(error), status


def mistaken_text(site: Site, page: Page, asked: Asked, sentence: str, status: int) -> tuple[str, int]:
    """A sentence above the page's form, with what was typed in it; alone where the page has none."""
    if page.form is None:
        return error_text(site, sentence, status)
    facts = {**frame(site, asked), "page": page.name, **page.form(site, asked), "mistake": sentence}
    return render(page.template, facts), status


def error_text(site: Site, sentence: str, status: int) -> tuple[str, int]:
    facts: Mapping[str, Any] = {**frame(site, Asked()), "page": "error", "sentence": sentence}
    return render("error.html", facts), status


async def not_found(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    text = "there is no such page; the list of runs leads to all that there are\n"
    return Response(
        text if error.status_code == 404 else f"{error.detail}\n", error.status_code, media_type="text/plain"
    )


async def defect(request: Request, error: Exception) -> Response:
    LOG.error("%s", request.url.path, exc_info=error)
    text = "this page has a defect; the terminal in which rounds ui runs shows its traceback\n"
    return Response(text, 500, media_type="text/plain")


async def plotly(request: Request) -> Response:
    """Plotly's own script, from where its package lies; the package is not imported."""
    del request
    return FileResponse(plotly_script(), media_type="text/javascript", headers={"cache-control": "max-age=86400"})
