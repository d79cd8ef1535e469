"""Whole searches at a small size, in this process or in one that is killed."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.candidate import Candidate
from autocompress.config import StudyConfig, load_study
from autocompress.deploy import timing
from autocompress.engine import baseline
from autocompress.engine.events import Silent
from autocompress.engine.run_folder import RunFolder, write_study

NETWORKS = Path(__file__).parent / "networks.py"
CIFAR_RESNET = Path(__file__).parents[1] / "search_spaces" / "cifar_resnet.py"
SITTING_S = 0.1
HEAD = f"""
[study]
name = "tiny"
trials = 8
seed = 3
[model]
source = "{NETWORKS}:OneBlock"
[data]
source = "sklearn:digits"
image_size = 8
calibration_examples = 64
[baseline]
steps = 60
"""
"""Of a study of one block on 8x8 digits."""
SPACE = """
[space]
precision = ["w8a8", "w4a8"]
sparsity = [0.0, 0.5]
[target]
training_threads = 1
"""
LADDER_STUDY = f"""{HEAD}
[training]
steps = 60
batch_size = 32
views = 2{SPACE}"""
"""Of the same under the default engine."""
MODEL_SPACE = f"""
model_space = "{CIFAR_RESNET}:CifarResNetSpace"
[space.model_space_arguments]
in_channels = 1
widths = [[8, 16], [16], [16]]
depths = [[0, 1], [1], [1]]
kernels = [3]
[target]"""
DRIVER = f"""
import functools, importlib, os, signal, sys
from pathlib import Path
from autocompress.config import load_study
from autocompress.deploy import timing
from autocompress.engine import baseline, study
from autocompress.engine.events import Silent
baseline.time_latency = functools.partial(timing.time_latency, seconds={SITTING_S})

def kill_at(place):
    # "module:function:n:before|after": SIGKILL at the n-th call
    owner, path, number, when = place.split(":")
    owner = importlib.import_module(owner)
    *inside, attribute = path.split(".")
    for name in inside:
        owner = getattr(owner, name)
    function, calls = getattr(owner, attribute), []
    def wrapped(*args, **kwargs):
        calls.append(1)
        last = len(calls) == int(number)
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, attribute, wrapped)

if len(sys.argv) > 4:
    kill_at(sys.argv[4])
config = load_study(Path(sys.argv[1]), overrides={{"trials": int(sys.argv[3])}})
study.search(config, Path(sys.argv[2]), Silent())
"""


def write_and_load(folder: Path, text: str, trials: int | None = None) -> StudyConfig:
    """A study from ``folder/study.toml``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(text)
    return load_study(folder / "study.toml", overrides={} if trials is None else {"trials": trials})


def with_replaced(text: str, replaced: dict[str, str]) -> str:
    """The text with parts of it replaced, which must be there."""
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


class Notes(Silent):
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@contextlib.contextmanager
def short_sittings() -> Iterator[None]:
    """Time for a moment only, where tests look at what is done with a latency and not at how good it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "time_latency", functools.partial(timing.time_latency, seconds=SITTING_S))
        yield


def copied(prepared: RunFolder, root: Path, config: StudyConfig) -> RunFolder:
    """A run of another study over the same baseline."""
    shutil.copytree(prepared.root, root)
    write_study(RunFolder(root), config)
    return RunFolder(root)


def lasting(c: Candidate) -> Candidate:
    """The record without what may change later: the test split is read, and a latency that was off timed again."""
    later = {"test": None, "latency": None}
    measured = None if c.measurement is None else c.measurement.model_copy(update=later)
    return c.model_copy(update={"measurement": measured})


def start(folder: Path, run: RunFolder, trials: int, *kill: str) -> subprocess.Popen[str]:
    """A search in a process of its own, on ``folder/study.toml``.

    Args:
        kill: where it kills itself, as ``engine module:function:n-th call:before|after``.
    """
    kill = tuple(f"autocompress.engine.{place}" if not place.startswith("optuna") else place for place in kill)
    command = [sys.executable, "-c", DRIVER, str(folder / "study.toml"), str(run.root), str(trials), *kill]
    # a group of its own: the timing process must not survive what it times for
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


@contextlib.contextmanager
def searching(folder: Path, run: RunFolder, trials: int, *kill: str) -> Iterator[subprocess.Popen[str]]:
    """:func:`start`, and no process is left behind."""
    process = start(folder, run, trials, *kill)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish_in_own_process(folder: Path, run: RunFolder, trials: int, *kill: str) -> int:
    """Let :func:`start` come to its end, which may be its death; its exit status."""
    process = start(folder, run, trials, *kill)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something to happen while a process lives."""
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
