"""All checks, in the order in which they are shown."""

from pathlib import Path

from flows.doctor.devices import check_devices
from flows.doctor.file_system import check_file_system
from flows.doctor.finding import Finding
from flows.doctor.home_state import check_home_state
from flows.doctor.machine import check_machine
from flows.doctor.network import check_ports, check_proxies
from flows.doctor.servers import check_engine_servers, check_hub, check_servers
from flows.doctor.versions import check_versions


def examine(home: Path, *, asks_hub: bool = False) -> list[Finding]:
    """Look at everything; nothing is changed, and no host is asked that the user has not named."""
    return [
        *check_versions(),
        *check_machine(),
        *check_devices(),
        *check_file_system(home),
        *check_home_state(home),
        *check_ports(home),
        *check_proxies(),
        *check_servers(home),
        *check_engine_servers(home),
        *(check_hub() if asks_hub else []),
    ]
