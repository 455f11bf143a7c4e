"""The server of the pages, on this machine alone unless another address is asked for."""

import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import uvicorn

from flows.addresses import served
from flows.pages.application import application
from flows.pages.guard import token_of
from flows.pages.site import Site
from flows.pages.trackers import Trackers
from flows.server import listening

LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")


def serve(
    homes: Sequence[Path],
    *,
    host: str,
    port: int,
    begin: str = "/",
    read_only: bool = False,
    ready: Callable[[str], None],
) -> None:
    """Serve until the process is interrupted; ``ready`` is told the address of the page to begin at, once the
    port is ours.

    Raises:
        ConfigError: the port is taken, or the address is none of this machine.
    """
    token = token_of(homes[0])
    with closing(Trackers(homes[0])) as trackers, closing(listening(host, port)) as listener:
        port = listener.getsockname()[1]
        site = Site(homes=tuple(homes), is_read_only=read_only, trackers=trackers)
        hosts = ["*"] if host in EVERYWHERE else [host, LOOPBACK, "localhost"]
        pages = application(site, token=token, hosts=hosts, port=port)
        name = socket.gethostname() if host in EVERYWHERE else host
        address = f"http://{f'[{name}]' if ':' in name else name}:{port}"
        config = uvicorn.Config(pages, log_level="warning", access_log=False, server_header=False, lifespan="off")
        with served(homes[0], address):
            ready(f"{address}{begin}?token={token}")
            uvicorn.Server(config).run(sockets=[listener])
