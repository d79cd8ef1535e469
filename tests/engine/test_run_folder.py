"""What a run folder says is whole or an error, and it knows its own study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocompress.candidate import Candidate, Estimate, Measurement, Origin, State
from autocompress.config import StudyConfig, load_study
from autocompress.engine.run_folder import (
    RunFolder,
    belongs,
    open_run,
    read_candidate,
    read_candidates,
    read_study,
    record,
    remove_trial,
    run_config,
    write_json,
    write_study,
)
from autocompress.errors import RunError
from autocompress.plan import Plan

STUDY = """
[study]
name = "tiny"
trials = 5
[model]
source = "{model}"
weights = "{weights}"
[data]
source = "imagefolder:{{data}}/images"
folder = "{folder}"
[space]
precision = ["w8a8", "w4a8"]
"""


def study(folder: Path, data: str = "data", **changes: str) -> StudyConfig:
    """A study file in ``folder``, read; ``changes`` are replacements in its text."""
    text = STUDY.format(model="models.py:net", weights="{data}/w.pt", folder=data)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "study.toml"
    path.write_text(text)
    return load_study(path)


@pytest.fixture(autouse=True)
def no_data_folder_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    return folder


def candidate(trial: int, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {
        "origin": Origin.SAMPLED, "state": State.COMPLETE, "plan": Plan(seed=trial),
        "measurement": Measurement(size_bytes=10, compressed_bytes=9, size_ratio=0.5),
    }  # fmt: skip
    return Candidate(trial=trial, **fields | changes)


# Records


def test_records_come_back_as_they_were_in_order(run: RunFolder) -> None:
    written = [
        candidate(11),
        candidate(2, state=State.FAILED, reason="export: no", measurement=None),
        candidate(10_000),
    ]
    for each in written:
        record(run, each)
    assert read_candidates(run) == sorted(written, key=lambda c: c.trial)
    assert read_candidate(run, 11) == written[0]
    assert Plan.model_validate_json((run.trial(11) / "plan.json").read_text()) == written[0].plan
    assert Measurement.model_validate_json((run.trial(11) / "measurement.json").read_text()) == written[0].measurement
    assert not (run.trial(2) / "measurement.json").exists()


def test_a_trial_counts_only_with_its_record(run: RunFolder) -> None:
    run.trial(3).mkdir(parents=True)
    run.artifact(3).write_bytes(b"half a file")
    write_json(run.trial(3) / "plan.json", Plan())
    (run.root / "trials" / "notes").mkdir()
    assert read_candidate(run, 3) is None
    assert read_candidates(run) == []
    remove_trial(run, 3)
    assert not run.trial(3).exists()
    remove_trial(run, 3)  # nothing to remove is fine


def test_an_estimated_plan_is_one_file(run: RunFolder) -> None:
    estimate = Estimate(size_ratio=0.1, latency_ratio=0.2, divergence=0.3, shared_drop_points=4.0, drop_points=1.5)
    written = candidate(6, state=State.ESTIMATED, measurement=None, estimate=estimate)
    record(run, written)
    assert [path.name for path in run.trial(6).iterdir()] == ["candidate.json"]
    assert read_candidate(run, 6) == written


def test_only_what_is_new_is_parsed_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in range(3):
        record(run, candidate(trial))
    first = read_candidates(run)
    parsed: list[int] = []

    def counting(content: bytes) -> Candidate:
        parsed.append(json.loads(content)["trial"])
        return Candidate.model_validate(json.loads(content))

    monkeypatch.setattr(Candidate, "model_validate_json", counting)
    record(run, candidate(3))
    again = read_candidates(run)
    assert parsed == [3]
    assert all(new is old for new, old in zip(again, first, strict=False))


def test_a_rewritten_record_is_seen_whoever_wrote_it(run: RunFolder) -> None:
    record(run, candidate(0))
    record(run, candidate(1))
    before = (run.trial(1) / "candidate.json").stat()
    assert read_candidates(run)[1].measurement == candidate(1).measurement
    other = RunFolder(run.root)  # another process
    changed = Measurement(size_bytes=11, compressed_bytes=9, size_ratio=0.5)
    record(other, candidate(1, measurement=changed))
    # a clock that does not tell the two versions apart, and the same number of bytes
    os.utime(run.trial(1) / "candidate.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (run.trial(1) / "candidate.json").stat().st_size == before.st_size
    assert read_candidates(run)[1].measurement == changed
    assert read_candidate(run, 1) == read_candidates(other)[1]


def test_a_removed_record_is_gone_and_may_come_back(run: RunFolder) -> None:
    for trial in range(3):
        record(run, candidate(trial))
    assert len(read_candidates(run)) == 3
    remove_trial(RunFolder(run.root), 1)
    assert read_candidate(run, 1) is None
    assert [c.trial for c in read_candidates(run)] == [0, 2]
    (run.trial(2) / "candidate.json").unlink()  # its folder stays
    assert [c.trial for c in read_candidates(run)] == [0]
    record(run, candidate(1, name="again"))
    assert [c.name for c in read_candidates(run)] == ["", "again"]


def test_a_known_record_that_is_damaged_is_an_error(run: RunFolder) -> None:
    record(run, candidate(4))
    read_candidates(run)
    (run.trial(4) / "candidate.json").write_text("{")
    with pytest.raises(RunError, match="must be as it was written"):
        read_candidates(run)
    record(run, candidate(4))
    assert len(read_candidates(run)) == 1


def test_two_processes_see_each_others_records(run: RunFolder) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from autocompress.candidate import Candidate, Origin, State\n"
        "from autocompress.engine.run_folder import RunFolder, record\n"
        "from autocompress.plan import Plan\n"
        "for n in range(1, 60, 2):\n"
        "    record(RunFolder(Path(sys.argv[1])), Candidate(trial=n, origin=Origin.SAMPLED, state=State.FAILED, plan=Plan()))"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(run.root)])
    seen = 0
    for trial in range(0, 60, 2):
        record(run, candidate(trial))
        found = [c.trial for c in read_candidates(run)]
        assert found == sorted(found) and trial in found and len(found) >= seen
        seen = len(found)
    assert writer.wait(60) == 0
    assert [c.trial for c in read_candidates(run)] == list(range(60))


def test_a_journal_is_read_without_a_change(run: RunFolder) -> None:
    assert read_study(run) is None
    run.journal.touch()
    assert read_study(run) is None  # killed before the study was made
    storage = JournalStorage(JournalFileBackend(str(run.journal)))
    made = optuna.create_study(storage=storage, study_name="any name", directions=["minimize"] * 3)
    made.add_trial(optuna.trial.create_trial(values=[1.0, 2.0, 3.0]))
    before = run.journal.read_bytes()
    found = read_study(run)
    assert found is not None and found.trials[0].values == [1.0, 2.0, 3.0]
    assert run.journal.read_bytes() == before


def test_records_are_read_without_torch(run: RunFolder) -> None:
    record(run, candidate(0))
    script = (
        "import sys; from pathlib import Path; from autocompress.engine.run_folder import RunFolder, read_candidates\n"
        "import autocompress.results, autocompress.report.table, autocompress.report.page\n"
        "assert len(read_candidates(RunFolder(Path(sys.argv[1])))) == 1\n"
        "print([name for name in ('torch', 'sklearn', 'onnx') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(run.root)], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == "[]"


def test_a_run_without_trials_has_none(run: RunFolder) -> None:
    assert read_candidates(run) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"trial": 4}', b"[]", b"\xff\xfe", b'{"trial": "four"}'])
def test_a_damaged_record_is_named(run: RunFolder, content: bytes) -> None:
    record(run, candidate(4))
    (run.trial(4) / "candidate.json").write_bytes(content)
    for read in (lambda: read_candidate(run, 4), lambda: read_candidates(run)):
        with pytest.raises(RunError, match="0004") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_record_with_a_field_too_many_is_damaged(run: RunFolder) -> None:
    record(run, candidate(4))
    path = run.trial(4) / "candidate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": 1}))
    with pytest.raises(RunError):
        read_candidate(run, 4)


# Atomic writes


def test_a_reader_sees_the_old_or_the_new_and_nothing_between(tmp_path: Path) -> None:
    path, stop, seen = tmp_path / "record.json", threading.Event(), set()
    write_json(path, {"value": [0] * 20_000})

    def read() -> None:
        while not stop.is_set():
            seen.add(tuple(set(json.loads(path.read_text())["value"])))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 40):
        write_json(path, {"value": [number] * 20_000})
    stop.set()
    reader.join()
    assert seen and all(len(values) == 1 for values in seen)
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


KILLED = """
import json, os, sys
from pathlib import Path
from autocompress.engine import run_folder
real = os.fsync
def die(descriptor):
    real(descriptor)
    os.kill(os.getpid(), 9)
os.fsync = die
run_folder.write_json(Path(sys.argv[1]), {"value": "new"})
"""


def test_a_process_killed_while_writing_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"value": "old"})
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    assert json.loads(path.read_text()) == {"value": "old"}
    write_json(path, {"value": "newer"})
    assert json.loads(path.read_text()) == {"value": "newer"}


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"value": "old"})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_json(path, {"value": "new"})
    assert json.loads(path.read_text()) == {"value": "old"}


# The study of a run


def test_a_run_keeps_its_study(run: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path)
    write_study(run, config)
    assert run_config(run) == config
    assert open_run(run.root) == run
    assert belongs(run, config) is None


def test_a_folder_without_a_study_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"study\.toml"):
            open_run(path)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('["w8a8", "w4a8"]', '["w8a8"]', "space.precision"),
        ('name = "tiny"', 'name = "other"', "study.name"),
        ("trials = 5", "trials = 5\nsampler = 'gp'", "study.sampler"),
        ("trials = 5", "trials = 5\nseed = 7", "study.seed"),
        ("trials = 5", "trials = 5\nmode = 'scalar'", "study.mode"),
        ("models.py:net", "models.py:other", "model.source"),
        ("{data}/w.pt", "{data}/v.pt", "model.weights"),
        ("{data}/images", "{data}/others", "data.source"),
        ("[space]", "[limits]\nmin_speedup = 2.0\n[space]", "limits.min_speedup"),
        ("[space]", "[training]\nsteps = 9\n[space]", "training.steps"),
        ("[space]", "[target]\nthreads = 2\n[space]", "target.threads"),
    ],
)
def test_the_setting_that_differs_is_reported(run: RunFolder, tmp_path: Path, old: str, new: str, key: str) -> None:
    write_study(run, study(tmp_path))
    difference = belongs(run, study(tmp_path, **{old: new}))
    assert difference is not None and difference.startswith(f"{key} is ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials = 5", "trials = 50"),
        ("trials = 5", "timeout = '3m'"),
        ("[space]", "[target]\ntraining_threads = 1\n[space]"),
    ],
)
def test_totals_and_threads_may_change(run: RunFolder, tmp_path: Path, old: str, new: str) -> None:
    write_study(run, study(tmp_path))
    assert belongs(run, study(tmp_path, **{old: new})) is None


def test_data_may_move(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(run, study(tmp_path, data="/here/data"))
    assert belongs(run, study(tmp_path, data="/there/data")) is None
    monkeypatch.setenv("AUTOCOMPRESS_DATA", "/elsewhere")
    assert belongs(run, study(tmp_path, data="/here/data")) is None
    assert belongs(run, study(tmp_path, data="/here/data", **{"{data}/images": "{data}/others"})) is not None


def test_the_environment_does_not_change_what_a_run_was(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(tmp_path, data="/here/data")
    write_study(run, config)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", "/elsewhere")
    assert run_config(run) == config


def test_all_paths_are_inside_the_folder(run: RunFolder) -> None:
    paths = [
        run.study_file,
        run.journal,
        run.baseline,
        run.workers,
        run.report,
        run.artifact(7),
        run.checkpoint(123_456),
    ]
    assert all(run.root in path.parents for path in paths)
    assert run.trial(7).name == "0007"
