"""A worker's lock lives exactly as long as its process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.engine.workers import is_alive, sweep, working
from autocompress.file_lock import exclusive

WORKER = """
import sys, time
from pathlib import Path
from autocompress.engine.workers import working
with working(Path(sys.argv[1])) as identity:
    print(identity, flush=True)
    {body}
"""


@contextlib.contextmanager
def other_process(folder: Path, body: str = "time.sleep(60)") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A worker in a process of its own, and its id."""
    command = [sys.executable, "-c", WORKER.format(body=body), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_worker_is_alive_while_it_works_and_no_longer(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    with working(folder) as identity:
        assert is_alive(folder, identity)
        assert is_alive(folder, identity)  # asking does not take the lock away
    assert not is_alive(folder, identity)
    assert list(folder.iterdir()) == []


def test_an_unknown_worker_is_not_alive(tmp_path: Path) -> None:
    assert not is_alive(tmp_path, "none")
    assert not is_alive(tmp_path / "nowhere", "none")


def test_two_workers_have_their_own_ids(tmp_path: Path) -> None:
    with working(tmp_path) as first, working(tmp_path) as second:
        assert first != second
        assert is_alive(tmp_path, first) and is_alive(tmp_path, second)
        assert sweep(tmp_path) == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_not_alive(tmp_path: Path, how: signal.Signals) -> None:
    with other_process(tmp_path) as (process, identity):
        assert is_alive(tmp_path, identity)
        process.send_signal(how)
        process.wait()
        assert not is_alive(tmp_path, identity)


def test_a_child_left_behind_does_not_keep_a_worker_alive(tmp_path: Path) -> None:
    """Such as a timing process that outlives the search by a moment."""
    body = "import subprocess; child = subprocess.Popen(['sleep', '20']); print(child.pid, flush=True); time.sleep(60)"
    with other_process(tmp_path, body) as (process, identity):
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            assert not is_alive(tmp_path, identity)
        finally:
            os.kill(child, signal.SIGKILL)


def test_sweeping_removes_the_locks_of_the_dead_only(tmp_path: Path) -> None:
    with other_process(tmp_path) as (dead, dead_id), other_process(tmp_path) as (_, living_id):
        assert sweep(tmp_path) == 2
        dead.kill()
        dead.wait()
        assert sweep(tmp_path) == 1
        assert not (tmp_path / f"{dead_id}.lock").exists()
        assert is_alive(tmp_path, living_id)


def test_sweeping_never_takes_a_starting_worker_for_dead(tmp_path: Path) -> None:
    stop = threading.Event()

    def keep_sweeping() -> None:
        while not stop.is_set():
            sweep(tmp_path)

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    try:
        for _ in range(300):
            with working(tmp_path) as identity:
                assert is_alive(tmp_path, identity)
    finally:
        stop.set()
        sweeper.join()


def test_a_body_that_raises_frees_both_locks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), working(tmp_path) as identity, exclusive(tmp_path / "ask"):
        raise ValueError("inside")
    assert not is_alive(tmp_path, identity)
    with exclusive(tmp_path / "ask"):
        pass


ADD_ONE = """
import sys
from pathlib import Path
from autocompress.file_lock import exclusive
total = Path(sys.argv[1])
for _ in range(200):
    with exclusive(total.with_suffix(".lock")):
        number = int(total.read_text())
        total.write_text(str(number + 1))
"""


def test_what_is_done_exclusively_is_never_done_at_once(tmp_path: Path) -> None:
    total = tmp_path / "total"
    total.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", ADD_ONE, str(total)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert total.read_text() == "600"


def test_the_exclusive_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    body = "from autocompress.file_lock import exclusive\n    with exclusive(Path(sys.argv[1]) / 'ask'):\n        print('held', flush=True); time.sleep(60)"
    with other_process(tmp_path, body) as (process, _):
        assert process.stdout is not None and process.stdout.readline().strip() == "held"
        waited = threading.Event()

        def wait_for_it() -> None:
            with exclusive(tmp_path / "ask"):
                waited.set()

        threading.Thread(target=wait_for_it, daemon=True).start()
        time.sleep(0.2)
        assert not waited.is_set()
        process.kill()
        assert waited.wait(10)
