"""Ports that are taken, and proxies that the environment names."""

import importlib.util
import socket
from pathlib import Path
from urllib.parse import urlsplit

from flows.addresses import DEFAULT_PORT, served_at
from flows.doctor.finding import OK, PROBLEM, WARNING, Finding
from tasks import environment

SCHEMES = ("http", "https", "socks5", "socks5h")
"""Of proxies that httpx knows, through which Prefect's client and the hub's go."""
ANSWER_S = 3.0
LOOPBACK = "127.0.0.1"


def check_ports(home: Path) -> list[Finding]:
    check = "ports"
    if not is_free(0):
        move = "allow this process to listen there: Prefect's server and the pages do"
        return [Finding(check=check, state=PROBLEM, found=f"nothing can listen on {LOOPBACK}", next_move=move)]
    if (address := served_at(home)) is not None:
        return [Finding(check=check, state=OK, found=f"rounds ui serves the pages at {address}")]
    if is_free(DEFAULT_PORT):
        return [Finding(check=check, state=OK, found=f"{DEFAULT_PORT}, for rounds ui, is free")]
    found = f"{DEFAULT_PORT}, which rounds ui takes, is in use by another program"
    return [Finding(check=check, state=WARNING, found=found, next_move="rounds ui --port 0 takes a free one")]


def is_free(port: int) -> bool:
    """Whether a server of ours could listen at a port of this machine; 0 asks for any."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((LOOPBACK, port))
            asked.listen(1)
        except OSError:
            return False
        return True


def check_proxies() -> list[Finding]:
    named = environment.proxies()
    if not named:
        return [Finding(check="proxies", state=OK, found="none")]
    by_address: dict[str, list[str]] = {}
    for name, value in named.items():
        by_address.setdefault(value, []).append(name)
    return [check_proxy(value, ", ".join(names)) for value, names in by_address.items()]


def check_proxy(value: str, names: str) -> Finding:
    """Its address is shown without the password in it."""
    parts = urlsplit(value)
    try:
        host, port = parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 1080 if "socks" in value else 80)
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme not in SCHEMES:
        move = f"write it like http://HOST:PORT, or unset {names}"
        return Finding(check="proxies", state=PROBLEM, found=f"{names}: not the address of a proxy", next_move=move)
    named = f"{names} = {parts.scheme}://{host}:{port}"
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        # Prefect's client is kept from it; see tasks/environment.py.
        move = f"pip install socksio, or unset {names}"
        found = f"{named}: a model hub cannot be reached through it without the package socksio"
        return Finding(check="proxies", state=WARNING, found=found, next_move=move)
    if not answers(host, port):
        move = f"start it, or unset {names}"
        return Finding(check="proxies", state=WARNING, found=f"{named} does not answer", next_move=move)
    return Finding(check="proxies", state=OK, found=f"{named} answers; servers of this machine are asked without it")


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S):
            return True
    except OSError:
        return False
