"""Timing runs alone, gets its turn, and nobody keeps the machine after death."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from autocompress.deploy import machine_lock
from autocompress.errors import UserError

PRELUDE = "import os, sys, time\nfrom autocompress.deploy.machine_lock import timing, training_batch\n"
# time.monotonic() has one origin for all processes of a machine
SAY = "print({}, time.monotonic(), flush=True)\n"

Start = Callable[[str], subprocess.Popen[str]]
Holder = Callable[[], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of lock files of each test's own, for this process and for those it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine_lock, "_per_thread", threading.local())
    return machine_lock.lock_folder()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python processes and kills them at the end."""
    processes: list[subprocess.Popen[str]] = []

    def run(script: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PRELUDE + script]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str], word: str) -> float:
    """Waits for a word; the time at which it was said."""
    assert process.stdout is not None
    said, when = process.stdout.readline().split()
    assert said == word
    return float(when)


def hold(kind: str, seconds: float) -> str:
    inside = f"    {SAY.format(repr('held'))}    time.sleep({seconds})\n    {SAY.format(repr('done'))}"
    return f"with {kind}():\n{inside}"


def seconds_to_time() -> float:
    begin = time.monotonic()
    with machine_lock.timing():
        return time.monotonic() - begin


@pytest.mark.parametrize("holder", ["training_batch", "timing"])
def test_timing_waits_for_every_holder(start: Start, holder: str) -> None:
    process = start(hold(holder, 0.4))
    heard(process, "held")
    with machine_lock.timing():
        acquired = time.monotonic()
    assert acquired >= heard(process, "done")


def test_training_waits_for_timing(start: Start) -> None:
    process = start(hold("timing", 0.4))
    heard(process, "held")
    with machine_lock.training_batch():
        acquired = time.monotonic()
    assert acquired >= heard(process, "done")


def test_trainers_share_the_machine(start: Start) -> None:
    process = start(hold("training_batch", 60))
    heard(process, "held")
    with machine_lock.training_batch():
        pass


def test_threads_of_one_process_are_separate_holders() -> None:
    inside = threading.Barrier(2, timeout=10)

    def batch() -> None:
        with machine_lock.training_batch():
            inside.wait()

    threads = [threading.Thread(target=batch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside.broken
    assert seconds_to_time() < 5


def test_a_stream_of_batches_does_not_starve_timing(start: Start, folder: Path) -> None:
    say = SAY.format("'held'")
    batches = f"while True:\n    with training_batch():\n        {say}        time.sleep(0.05)\n"
    streams = [start(f"time.sleep({delay})\n{batches}") for delay in (0.0, 0.02)]
    for stream in streams:
        heard(stream, "held")
    # one of the two holds the machine practically always: who only tries hardly ever gets it
    with (folder / "machine").open("rb") as machine:
        got = [tries(machine.fileno()) for _ in range(200)]
    assert sum(got) < 20
    waits = [seconds_to_time() for _ in range(5)]
    assert max(waits) < 5


def tries(descriptor: int) -> bool:
    time.sleep(0.002)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


@pytest.mark.parametrize("holder", ["training_batch", "timing"])
def test_a_killed_holder_lets_go(start: Start, holder: str) -> None:
    process = start(hold(holder, 60))
    heard(process, "held")
    process.kill()
    assert seconds_to_time() < 5


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(start: Start) -> None:
    say = SAY.format("child")
    fork = f"    child = os.fork()\n    if child:\n        {say}    time.sleep(60)\n"
    process = start(f"with timing():\n{fork}")
    assert process.stdout is not None
    child = int(process.stdout.readline().split()[0])
    try:
        process.kill()
        assert seconds_to_time() < 5
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_waits_for_its_parent(start: Start) -> None:
    script = (
        "with timing():\n    child = os.fork()\n    if child:\n"
        f"        time.sleep(0.4)\n        {SAY.format(repr('done'))}"
        f"if not child:\n    with training_batch():\n        {SAY.format(repr('held'))}    os._exit(0)\n"
        "os.wait()\n"
    )
    # the child leaves its copy of the parent's block at once and must then queue up like anybody else
    process = start(script)
    assert heard(process, "done") <= heard(process, "held")


def test_an_error_inside_releases(start: Start) -> None:
    for holder in (machine_lock.training_batch, machine_lock.timing):
        with pytest.raises(ZeroDivisionError), holder():
            raise ZeroDivisionError
    process = start(hold("timing", 0))
    heard(process, "held")


@pytest.mark.parametrize("outer", [machine_lock.training_batch, machine_lock.timing])
@pytest.mark.parametrize("inner", [machine_lock.training_batch, machine_lock.timing])
def test_nesting_is_refused(outer: Holder, inner: Holder) -> None:
    with outer(), pytest.raises(RuntimeError, match="nested"), inner():
        pass
    assert seconds_to_time() < 5


def test_files_are_the_users_alone(folder: Path) -> None:
    seconds_to_time()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert str(os.getuid()) in folder.name


def test_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="set TMPDIR"), machine_lock.timing():
        pass


def test_a_file_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(UserError, match="is not one"), machine_lock.timing():
        pass


def test_a_folder_open_to_others_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(UserError, match="mode 755"), machine_lock.training_batch():
        pass


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(machine_lock, "lock_folder", lambda: folder)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(UserError, match=f"belongs to user {owner}"), machine_lock.timing():
        pass
