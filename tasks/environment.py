"""The one place that reads and writes environment variables.

``quieten`` must run before torch, Prefect, MLflow or a Hugging Face library is imported: each of them reads its switches
at import. Nothing here imports any of them.
"""

import importlib.util
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

# Every library below would otherwise contact a host that the user never named: Prefect's server and SDK at start, MLflow
# and the hub client on use. Measured effects without network: hangs of 20 s at exit and before reading a local file.
QUIET: Mapping[str, str] = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A missing optional git binary makes MLflow print a page of advice.
    "GIT_PYTHON_REFRESH": "quiet",
}
OFFLINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Prefect's recorder writes one event per commit by default and falls behind short tasks; its history then has holes.
# Its interval is cut to whole seconds before use: anything below 1 makes the server spin on one core for ever.
PREFECT_SERVER: Mapping[str, str] = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "true",
    # Named, since what is beside the working directory could say otherwise; the guard in front allows less than this.
    "PREFECT_SERVER_CORS_ALLOWED_METHODS": "GET",
    "PREFECT_SERVER_CORS_ALLOWED_HEADERS": "accept",
}
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
HIDDEN_PROXIES = "ROUNDS_HIDDEN_PROXIES"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PREFECT_CLIENT: Mapping[str, str] = {
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    # Each call to a server that is down costs 14 s instead of a minute; the run then goes on without it.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
}
# A tracking server that is down must cost seconds, not the four minutes of MLflow's seven retries.
MLFLOW_CLIENT: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
MEMORY: Mapping[str, str] = {
    # For glibc: keep what is freed. Gradients of large vocabularies otherwise go back to the kernel after each step, and
    # every page of the next ones is asked for again.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    # For oneDNN, which multiplies bfloat16 on a processor: both of its caches hold about a megabyte of code for each
    # combination of shapes, a thousand by default, and every micro-batch has a length of its own. A pass needs about 15.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
MEMORY_IN_PARTS: Mapping[str, str] = {
    # What is whole for a moment goes back to the kernel. Kept, it lies in pieces between what stays, and a process with half
    # of a model takes more memory than one with all of it.
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}
# What says how libraries compute and where they look for models; all else, such as paths and keys, is a node's own.
OF_COMPUTING = ("OMP_", "MKL_", "KMP_", "CUBLAS_", "TORCH_", "PYTHONPATH", "PYTHONHASHSEED")
PASSED_ON = (*OF_COMPUTING, "HF_", "TRANSFORMERS_", "TOKENIZERS_")
SECRETS = ("TOKEN", "TOKEN_PATH", "KEY")


def passed_on() -> dict[str, str]:
    """The variables that a worker on another machine has from this one, without secrets: they would cross the network."""
    return {name: value for name, value in os.environ.items() if _is_passed_on(name)}


def take_over(passed: Mapping[str, str]) -> None:
    """Have what another machine passed on, and nothing else of its kind: Ray sets a number of threads."""
    for name in [name for name in os.environ if _is_passed_on(name) and name != "PYTHONPATH"]:
        del os.environ[name]
    os.environ.update(passed)


def names_threads() -> bool:
    """Whether the number of threads is set, and not that of the cores."""
    return "OMP_NUM_THREADS" in os.environ


def _is_passed_on(name: str) -> bool:
    return name.startswith(PASSED_ON) and not name.endswith(SECRETS)


def quieten(*, hub: bool) -> None:
    """Set the switches that keep libraries quiet and off the network; what the user has set already wins.

    ``hub`` says whether the configuration names a model or data set on a hub; without one, hub access is switched off.
    """
    for name, value in {**QUIET, **PREFECT_CLIENT, **MLFLOW_CLIENT, **({} if hub else OFFLINE)}.items():
        os.environ.setdefault(name, value)
    keep_loopback_direct()


def keep_loopback_direct() -> None:
    """Have no library look for this machine's own servers through a proxy, whatever the environment says of proxies."""
    for name in ("no_proxy", "NO_PROXY"):
        listed = [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]
        if "*" not in listed:
            os.environ[name] = ",".join([*listed, *(host for host in LOOPBACK if host not in listed)])
    if importlib.util.find_spec("socksio") is None:
        # httpx, Prefect's client, fails for any host where a SOCKS proxy is named and this package is missing.
        hidden = {n: v for n, v in os.environ.items() if n.lower() in PROXIES and v.lower().startswith("socks")}
        for name in hidden:
            del os.environ[name]
        if hidden:
            os.environ[HIDDEN_PROXIES] = json.dumps({**hidden_proxies(), **hidden})


def mlflow_server_environment() -> dict[str, str]:
    """For MLflow's own server over the home's database: nothing of another MLflow's, and without the processes that execute
    jobs, of which it has eight and we none."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**others, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def hidden_proxies() -> dict[str, str]:
    """Proxies of the user that only the worker, which needs no server of ours, is told of."""
    return dict(json.loads(os.environ.get(HIDDEN_PROXIES, "{}")))


def proxies() -> dict[str, str]:
    """All proxies that the environment names, by variable."""
    named = {name: value for name, value in os.environ.items() if name.lower() in PROXIES and value}
    return {**hidden_proxies(), **named}


def hub_endpoint() -> str:
    """The address of the model hub."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def is_hub_offline() -> bool:
    """Whether the user has told the hub's client to fetch nothing."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def home_directory(option: str | Path | None) -> Path:
    """Where runs and the embedded state live: ``--home``, else ``ROUNDS_HOME``, else ``.rounds`` here."""
    from tasks.paths import user_directory

    if option is not None:
        return user_directory(option, field="--home")
    return user_directory(os.environ.get("ROUNDS_HOME") or ".rounds", field="ROUNDS_HOME")


def home_option(home: Path) -> str:
    """What a command needs in front to find this home, with a space behind it; nothing where it finds it anyway."""
    given = os.environ.get("ROUNDS_HOME") or ".rounds"
    is_found = home == Path(os.path.realpath(os.path.expanduser(given)))
    return "" if is_found else f"--home {shlex.quote(str(home))} "


def cache_directory() -> Path:
    """Where on this machine the user keeps what can be made anew at any time."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The standard has relative ones ignored.
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "rlhf-rounds"


def prefect_api_url() -> str | None:
    """The user's own Prefect server, if one is named."""
    return os.environ.get("PREFECT_API_URL")


def use_prefect_server(url: str | None, auth_string: str | None, prefect_home: Path) -> None:
    """Point this process and its children at the embedded Prefect server. Before the first import of prefect.

    Settings for another server, such as its key or headers, are not for this one.
    """
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ.update(
        {
            **PREFECT_CLIENT,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # A server in this very process would lose most of what it is told.
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_HOME": str(prefect_home),
            "PREFECT_PROFILES_PATH": str(prefect_home / "profiles.toml"),
        }
    )
    if url is not None and auth_string is not None:
        os.environ.update({"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": auth_string})


def timezone() -> str | None:
    """The name of the user's time zone, if one is set."""
    return os.environ.get("TZ")


def serve_from(home: Path) -> None:
    """Have the processes of served runs find the home, and no file of the user in place of a library."""
    os.environ["ROUNDS_HOME"] = str(home)
    os.environ["PYTHONSAFEPATH"] = "1"


def forget_other_mlflow() -> None:
    """Drop settings that are meant for another MLflow than the home's own database."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    ours = {name: value for name, value in {**QUIET, **MLFLOW_CLIENT}.items() if name.startswith("MLFLOW_")}
    os.environ.update(ours)


def execute_only(entrypoint: str) -> None:
    """Have the processes of served runs execute this flow, by its import path, whatever the server names."""
    os.environ["PREFECT__FLOW_ENTRYPOINT"] = entrypoint


def engine_api_key() -> str | None:
    """The key that the servers in ``execution.engine_servers`` want, if they want one."""
    return os.environ.get("ROUNDS_ENGINE_API_KEY")


def mlflow_tracking_uri() -> str | None:
    """The user's own MLflow server, if one is named."""
    return os.environ.get("MLFLOW_TRACKING_URI")


def server_environment() -> dict[str, str]:
    """The environment in which the process of the embedded Prefect server starts: nothing of another Prefect's."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}, **QUIET}


def be_server(url: str, auth_string: str, database: str) -> None:
    """Make this process the embedded Prefect server that listens at ``url`` (…/api), at home in its working directory."""
    settings = {
        **PREFECT_SERVER,
        "PREFECT_HOME": str(Path.cwd()),
        "PREFECT_PROFILES_PATH": str(Path.cwd() / "profiles.toml"),
        # Relative, so that no character of the path is taken for a part of the address, and a moved home keeps it.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": url.rsplit(":", 1)[1].split("/")[0],
        "PREFECT_SERVER_API_AUTH_STRING": auth_string,
        # Some services of the server ask it as any client does.
        "PREFECT_API_AUTH_STRING": auth_string,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url.removesuffix("/api"),
        # Without it the pages served on this port ask the default port for their data and stay blank.
        "PREFECT_SERVER_UI_API_URL": url,
    }
    os.environ.update(settings)


def worker_environment() -> dict[str, str]:
    """The environment of the worker process."""
    return {
        # What a reward function or a template can read, it can tell.
        **{name: value for name, value in os.environ.items() if name != "PREFECT_API_AUTH_STRING"},
        **hidden_proxies(),
        "PYTHONUNBUFFERED": "1",
        # cuBLAS is deterministic only with a fixed workspace.
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        **MEMORY,
    }


def of_rank(rank: int, *, in_parts: bool) -> dict[str, str]:
    """What sets one of several processes that train together apart: its own CUDA device. They talk on this machine alone."""
    return {
        **patient(),
        **(MEMORY_IN_PARTS if in_parts else {}),
        "CUDA_VISIBLE_DEVICES": visible_device(rank),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", "lo"),
    }


def of_worker(number: int, workers: int) -> dict[str, str]:
    """What sets one of several workers apart, beside the environment that all have: its own CUDA device, if there are any.

    The first has all devices and takes the first of them, so that it can say how many there are. The number of threads stays
    what it is for one worker: sums over parts of a tensor, one a thread, round by it.
    """
    if workers == 1:
        return {}
    return patient() if number == 0 else {**patient(), "CUDA_VISIBLE_DEVICES": visible_device(number)}


def patient() -> dict[str, str]:
    """A thread that has nothing to do would keep a core from another process by asking for more."""
    return {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def visible_device(number: int) -> str:
    """The name of the CUDA device of this number among those that may be used; empty where there are not so many."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(number + 1))))
    return dict(enumerate(named.split(","))).get(number, "")
