"""A port to listen at, or one sentence about why it cannot be had."""

import socket

from tasks.errors import ConfigError


def listening(host: str, port: int) -> socket.socket:
    """A socket of ours, asked for before anything is promised."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host}: no address of this machine ({error.strerror}); leave it out") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if "in use" in str(error):
            raise ConfigError(f"--port {port}: taken by another program; name another, or 0 for a free one") from error
        raise ConfigError(f"--host {host}: cannot be listened to ({error.strerror}); leave it out") from error
    return listener
