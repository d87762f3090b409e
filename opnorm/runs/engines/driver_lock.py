"""One driver at a time for a study on a cluster."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from opnorm._core import files
from opnorm.errors import BusyError, RunError
from opnorm.runs.remote_folder import RemoteFolder
from opnorm.runs.store import Store

__all__ = ["only_driver"]

BEAT = 5.0  # seconds between two signs of life of a driver
DEAD = 3 * BEAT  # without a sign, after which another one takes over


@contextmanager
def only_driver(study: str, store: Store, url: str) -> Iterator[None]:
    """Keep other drivers from a study: by a lock of the store, and under a URL by a file that is rewritten every 5 s.

    Args:
        study: names it.
        store: where the driver keeps results.
        url: where the nodes keep them; empty for the folder of the store.

    Raises:
        BusyError: another driver is at it.
    """
    try:
        with store.lock(f"driver-{study}"):
            if url:
                with _heartbeat(RemoteFolder(url), f".drivers/{study}.json"):
                    yield
            else:
                yield
    except BusyError as e:
        if f"driver-{study}" not in str(e):
            raise
        raise BusyError(
            f"another driver is at this study in {files.shown(store.root)}; wait until it ends"
        ) from e


@contextmanager
def _heartbeat(remote: RemoteFolder, name: str) -> Iterator[None]:
    own = {"driver": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
    before = remote.read(name)
    ends = time.monotonic() + DEAD
    while before and time.monotonic() < ends:
        time.sleep(min(BEAT / 2, 1.0))
        now = remote.read(name)
        if now and now != before:
            other = json.loads(now)
            raise BusyError(
                f"another driver, process {other['process']} of {other['host']}, is at this study in {remote.url}; wait "
                "until it ends"
            )
        before = now
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while True:
            with suppress(
                RunError
            ):  # the storage may be away for a moment; the runs say it where it stays away
                remote.write(name, json.dumps(own | {"beat": number}))
            number += 1
            if stop.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        remote.remove(name)
