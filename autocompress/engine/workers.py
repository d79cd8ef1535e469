"""Who is alive: each worker of a run holds an OS lock, which dies with its process.

JournalStorage has no heartbeat; a lock needs none. SIGKILL releases it, and a stopped machine too.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def working(folder: Path) -> Iterator[str]:
    """Be a worker of a run: yields its id, whose lock is held until the body or the process ends."""
    folder.mkdir(exist_ok=True)
    identity = uuid.uuid4().hex
    path, unlocked = folder / f"{identity}.lock", folder / f"{identity}.new"
    descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # under its name only when it is locked: whoever sweeps in between would take the worker for dead
        unlocked.rename(path)
        yield identity
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_alive(folder: Path, identity: str) -> bool:
    """Whether the worker's process still runs."""
    try:
        descriptor = os.open(folder / f"{identity}.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sweep(folder: Path) -> int:
    """Remove the locks of dead workers; returns how many workers live."""
    living = 0
    for path in folder.glob("*.lock"):
        if is_alive(folder, path.stem):
            living += 1
        else:
            path.unlink(missing_ok=True)
    return living
