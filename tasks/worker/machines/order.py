"""What the process of a run tells the one that stands for a worker elsewhere, and whether anybody is there at all."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from tasks.errors import ConfigError

ANSWER_S = 5.0
# What a client of HTTP/2 begins with (RFC 9113, section 3.4), and an empty frame of settings: gRPC answers with its own.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One worker of a run in a cluster."""

    address: str
    log: str
    settings: Mapping[str, str]
    functions: Sequence[str]
    """Import paths that the configuration names, whose code must be there too."""
    device: str
    workers: int
    train_processes: int
    is_first: bool


def require_answer(address: str) -> None:
    """Find out in seconds whether something speaks at an address, since Ray waits for minutes.

    Raises:
        ConfigError: nobody does, or it is another kind of server.
    """
    host, _, port = address.rpartition(":")
    try:
        with closing(socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S)) as connection:
            connection.sendall(HELLO)
            said = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"execution.ray={address}: no Ray cluster answers there ({error}); start one with ray start, or correct it"
        ) from None
    if said.startswith(b"HTTP/1"):
        raise ConfigError(f"execution.ray={address}: a web server answers there, and no Ray cluster; correct it")
