"""Training and timing take turns on one machine, across processes.

Training holds a shared lock that it releases between batches; timing takes it exclusively. The locks are
``flock`` locks on two files of the user, so the kernel releases them when a process dies. Everybody passes
through the first file, the turnstile, to the second, and timing keeps the turnstile while it waits: trainers
that come later queue up behind it and cannot starve it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autocompress.errors import UserError


class _Files:
    """A thread's own descriptors of the two files: ``flock`` locks belong to an open file, not a thread."""

    def __init__(self, folder: Path) -> None:
        self.held = False
        self._open: list[int] = []
        self._open = _open_files(folder, ("turnstile", "machine"))
        self.turnstile, self.machine = self._open
        _all_files.add(self)

    def unlock(self, descriptor: int) -> None:
        # a child that was forked inside a block leaves it too, but the lock is its parent's
        if self._open:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []

    def __del__(self) -> None:
        self.close()


_all_files: weakref.WeakSet[_Files] = weakref.WeakSet()
_per_thread = threading.local()


def lock_folder() -> Path:
    """Where the user's lock files are: one folder in the system's folder for temporary files."""
    return Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}"


@contextmanager
def training_batch() -> Iterator[None]:
    """Hold the machine for one batch of training, beside other trainers; waits while something is timed.

    Costs some microseconds where nothing is timed. Not reentrant.

    Raises:
        UserError: the folder of the lock files is not the user's own.
        RuntimeError: the thread holds the machine already.
    """
    files = _free_files()
    fcntl.flock(files.turnstile, fcntl.LOCK_SH)
    try:
        fcntl.flock(files.machine, fcntl.LOCK_SH)
    finally:
        files.unlock(files.turnstile)
    yield from _hold(files)


@contextmanager
def timing() -> Iterator[None]:
    """Hold the machine alone; waits until the batches that run now are done. Not reentrant.

    Raises:
        UserError: the folder of the lock files is not the user's own.
        RuntimeError: the thread holds the machine already.
    """
    files = _free_files()
    fcntl.flock(files.turnstile, fcntl.LOCK_EX)
    try:
        fcntl.flock(files.machine, fcntl.LOCK_EX)
        yield from _hold(files)
    finally:
        files.unlock(files.turnstile)


def _hold(files: _Files) -> Iterator[None]:
    files.held = True
    try:
        yield
    finally:
        files.held = False
        files.unlock(files.machine)


def _free_files() -> _Files:
    files: _Files | None = getattr(_per_thread, "files", None)
    if files is None:
        files = _per_thread.files = _Files(lock_folder())
    if files.held:
        # flock would silently turn the lock that is held into the one that is asked for
        raise RuntimeError("training_batch() and timing() must not be nested in one thread")
    return files


def _open_files(folder: Path, names: tuple[str, ...]) -> list[int]:
    """Descriptors of files in a folder of the user's own, opened through the descriptor that was checked."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(_refusal(folder, f"is not one ({error.strerror})")) from error
    try:
        status = os.fstat(parent)
        if status.st_uid != os.getuid():
            raise UserError(_refusal(folder, f"belongs to user {status.st_uid}"))
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise UserError(_refusal(folder, f"has mode {stat.S_IMODE(status.st_mode):o}"))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        return [os.open(name, flags, 0o600, dir_fd=parent) for name in names]
    finally:
        os.close(parent)


def _refusal(folder: Path, found: str) -> str:
    return f"lock files need a folder of mode 700 of your own; {folder} {found}; remove it or set TMPDIR"


def _close_after_fork() -> None:
    """A child opens its own files: inherited ones share the parent's locks and would outlive the parent."""
    global _per_thread
    for files in list(_all_files):
        files.close()
    _per_thread = threading.local()


os.register_at_fork(after_in_child=_close_after_fork)
