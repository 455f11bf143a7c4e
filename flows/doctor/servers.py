"""Servers that the user has named or the home has, and the model hub where it is asked for."""

import json
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from flows.doctor.finding import OK, PROBLEM, WARNING, Finding
from flows.runs import Run, list_runs
from flows.server import asked, is_healthy, running_server, server_state
from tasks import environment
from tasks.config import server_address, untested_vllm
from tasks.errors import TransientError, UserError


def check_servers(home: Path) -> list[Finding]:
    named = environment.prefect_api_url()
    return [check_embedded(home) if named is None else check_prefect(named), check_mlflow()]


def check_prefect(url: str) -> Finding:
    if is_healthy(url):
        return Finding(check="Prefect", state=OK, found=f"PREFECT_API_URL={without_password(url)} answers")
    found = f"PREFECT_API_URL={without_password(url)} does not answer; runs use the home's own server"
    return Finding(check="Prefect", state=WARNING, found=found, next_move="start that server, or unset PREFECT_API_URL")


def check_embedded(home: Path) -> Finding:
    try:
        if server_state(home, patience_s=0) is None:
            return Finding(check="Prefect", state=OK, found="the home's server is not running; a run starts it")
    except TransientError as error:
        found, _, move = str(error).partition("; ")
        return Finding(check="Prefect", state=WARNING, found=found, next_move=move)
    if (url := running_server(home)) is not None:
        return Finding(check="Prefect", state=OK, found=f"the home's server runs at {url.removesuffix('/api')}")
    found = f"the home's server does not answer; its log is {home / 'prefect' / 'server.log'}"
    move = f"rounds {environment.home_option(home)}down, then rounds {environment.home_option(home)}up"
    return Finding(check="Prefect", state=WARNING, found=found, next_move=move)


def check_mlflow() -> Finding:
    uri = environment.mlflow_tracking_uri()
    if uri is None:
        return Finding(check="MLflow", state=OK, found="the home's own database; rounds mlflow shows it")
    named = f"MLFLOW_TRACKING_URI={without_password(uri)}"
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        said = answer_of(f"{without_password(uri).rstrip('/')}/health")
        if said == "":
            return Finding(check="MLflow", state=OK, found=f"{named} answers")
        move = "start that server, or unset it; what it misses is logged with the next round"
        return Finding(check="MLflow", state=WARNING, found=f"{named}: {said}", next_move=move)
    if parts.scheme in ("", "file"):
        move = "unset it, so that the home's own database is used, or name a server"
        return Finding(
            check="MLflow", state=PROBLEM, found=f"{named} is a directory; MLflow keeps none", next_move=move
        )
    return Finding(check="MLflow", state=OK, found=f"{named} is a database; not asked")


def check_engine_servers(home: Path) -> list[Finding]:
    """The sampling servers of the home's runs."""
    runs = [run for run in list_runs(home) if read_engine_servers(run)]
    urls = dict.fromkeys(server_address(url) for run in runs for url in read_engine_servers(run))
    return [check_engine_server(url) for url in urls]


def read_engine_servers(run: Run) -> tuple[str, ...]:
    try:
        return run.config.execution.engine_servers
    except (UserError, OSError):
        # What is wrong with the run is told by another check.
        return ()


def check_engine_server(url: str) -> Finding:
    move = "start that server, or name another one in execution.engine_servers"
    try:
        with asked(f"{url}/version") as answer:
            version = json.load(answer).get("version")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return Finding(check="sampling", state=OK, found=f"{url} answers, and is not vLLM")
        if error.code in (401, 403):
            return Finding(check="sampling", state=OK, found=f"{url} answers, and wants its key")
        return Finding(
            check="sampling", state=WARNING, found=f"{url}: answers {error.code} {error.reason}", next_move=move
        )
    except (OSError, ValueError, AttributeError) as error:
        said = f"does not answer ({getattr(error, 'reason', None) or error})"
        return Finding(check="sampling", state=WARNING, found=f"{url}: {said}", next_move=move)
    if mistake := untested_vllm(str(version)):
        found, _, move = mistake.partition("; ")
        return Finding(check="sampling", state=PROBLEM, found=f"{url}: {found}", next_move=move)
    return Finding(check="sampling", state=OK, found=f"{url} answers, vLLM {version}")


def check_hub() -> list[Finding]:
    """Only where the user wants it: no host is told anything that nobody named."""
    endpoint = environment.hub_endpoint()
    if environment.is_hub_offline():
        move = "unset HF_HUB_OFFLINE, unless all models and data are here already"
        return [
            Finding(check="model hub", state=WARNING, found="HF_HUB_OFFLINE is set: nothing is fetched", next_move=move)
        ]
    said = answer_of(endpoint)
    if said == "":
        return [Finding(check="model hub", state=OK, found=f"{without_password(endpoint)} answers")]
    move = "mend the network or its proxies, or name models and data by a path"
    return [Finding(check="model hub", state=PROBLEM, found=f"{without_password(endpoint)}: {said}", next_move=move)]


def answer_of(url: str) -> str:
    """Empty where a server answers; else what it says instead, or what is in the way."""
    try:
        with asked(url):
            return ""
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return f"does not answer ({getattr(error, 'reason', None) or error})"


def without_password(url: str) -> str:
    """The address as it may be shown; of a database, whose address holds much more, its kind."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return url
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme}://…"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
