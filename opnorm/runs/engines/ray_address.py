"""The address of a Ray cluster: whether something answers there, and where else on this machine."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from opnorm.errors import RunError

__all__ = ["answers", "check_head"]

PORT = 6379
"""Of a head, unless another is given to ``ray start``."""


def answers(address: str) -> bool:
    """Whether something accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def check_head(address: str) -> None:
    """RunError where nothing answers at HOST:PORT; it names the address of a head of this machine, if there is one."""
    if address in ("", "auto", "local"):
        return
    scheme = "ray://" * address.startswith("ray://")
    place = address.removeprefix(scheme)
    host, _, port = place.rpartition(":")
    if not port.isdecimal() or not host:
        raise RunError(f"address {address!r}: expected ray://HOST:PORT, HOST:PORT or auto")
    if answers(place):
        return
    said = f"no cluster answers at {address}"
    if found := next((other for other in _others(host, port, not scheme) if answers(other)), None):
        raise RunError(
            f"{said}, and one may at {found}, also of this machine; try --ray-address {scheme}{found}"
            + " or --ray-address auto" * (not scheme)
        )
    raise RunError(
        f"{said}: is the head running (ray start --head prints its address), and is the port open? ray:// takes the port of "
        "Ray's client server, 10001 unless it was set"
    )


def _others(host: str, port: str, heads: bool) -> Iterator[str]:
    """Where else a head, or its client server, may be, should the host be this machine."""
    own = list(_own_hosts())
    with suppress(ValueError):
        if ipaddress.ip_address(host.strip("[]")).is_loopback:
            own.append(host)
    if host not in (*own, "localhost"):
        return
    for other in own:
        if other != host:
            yield f"{other}:{port}"
    if heads:
        # where ray start writes it; its own tools read it, too
        with suppress(OSError, UnicodeDecodeError):
            yield (
                (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster")
                .read_text()
                .strip()
            )
        yield from (f"{other}:{PORT}" for other in own if port != str(PORT))


def _own_hosts() -> Iterator[str]:
    """The addresses of this machine: of itself, and the one that other machines see."""
    yield "127.0.0.1"
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))  # of documentation; nothing is sent, the system chooses its own address
        yield str(s.getsockname()[0])
