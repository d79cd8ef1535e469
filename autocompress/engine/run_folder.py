"""The run folder: where everything of a study lies, and reading it back."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Measurement
from autocompress.config import StudyConfig, load_study, to_toml
from autocompress.errors import RunError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. All names below the root are made here, never taken from a file."""

    root: Path

    @property
    def study_file(self) -> Path:
        """The resolved study."""
        return self.root / "study.toml"

    @property
    def journal(self) -> Path:
        """Optuna's default storage."""
        return self.root / "optuna.journal"

    @property
    def baseline(self) -> Path:
        """Folder of the uncompressed model."""
        return self.root / "baseline"

    @property
    def workers(self) -> Path:
        """Folder of the locks that live workers hold."""
        return self.root / "workers"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"

    def trial(self, number: int) -> Path:
        """Folder of one trial."""
        return self.root / "trials" / f"{number:04d}"

    def artifact(self, number: int) -> Path:
        """The file of one trial."""
        return self.trial(number) / "model.onnx"

    def checkpoint(self, number: int) -> Path:
        """Float weights of one trial, from which its training can go on."""
        return self.trial(number) / "weights.safetensors"


def open_run(path: Path) -> RunFolder:
    """A finished or running search's folder.

    Raises:
        RunError: there is no run at this path.
    """
    run = RunFolder(path)
    if not run.study_file.is_file():
        raise RunError(f"RUN is the folder of a search; {path} has no study.toml; start one with `autocompress search`")
    return run


def run_config(run: RunFolder) -> StudyConfig:
    """The study as it was resolved when the run was made, whatever the environment says now."""
    config = load_study(run.study_file)
    # paths were resolved then; only the folder's own entry may since be overridden
    folder = tomllib.loads(run.study_file.read_text(encoding="utf-8"))["data"].get("folder")
    return config.model_copy(update={"data": config.data.model_copy(update={"folder": folder})})


def belongs(run: RunFolder, config: StudyConfig) -> str | None:
    """The first setting in which a study differs from the run's; None if it is the same study.

    The totals (``trials``, ``timeout``) may change between sessions, as may where the data lie.
    """
    ours, theirs = (_identity(c) for c in (run_config(run), config))
    for section, values in ours.items():
        for key, value in values.items():
            if theirs[section][key] != value:
                return f"{section}.{key} is {value!r} there and {theirs[section][key]!r} here"
    return None


def _identity(config: StudyConfig) -> dict[str, dict[str, Any]]:
    content = config.model_dump(mode="json")
    for section, key in (("study", "trials"), ("study", "timeout"), ("target", "training_threads")):
        del content[section][key]
    folder = content["data"].pop("folder")
    if folder:  # the same study over data that moved
        places = [("data", key) for key in ("source", "validation", "test", "tokenizer")]
        for section, key in (*places, ("model", "source"), ("model", "weights")):
            if content[section][key]:
                content[section][key] = content[section][key].replace(folder, "{data}")
    return content


def write_json(path: Path, content: BaseModel | Any) -> None:
    """Write a record so that a reader sees all of it or nothing, and so that it survives a power cut."""
    text = content.model_dump_json(indent=1) if isinstance(content, BaseModel) else json.dumps(content, indent=1)
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_study(run: RunFolder, config: StudyConfig) -> None:
    """Keep the resolved study with its run."""
    run.study_file.write_text(to_toml(config), encoding="utf-8")


def record(run: RunFolder, candidate: Candidate) -> None:
    """Write a trial's plan, measurement and record; the record comes last and makes the trial count."""
    folder = run.trial(candidate.trial)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", candidate.plan)
    if candidate.measurement is not None:
        write_json(folder / "measurement.json", candidate.measurement)
    write_json(folder / "candidate.json", candidate)


def read_candidate(run: RunFolder, number: int) -> Candidate | None:
    """The record of one trial; None if it has none (unknown, or still running).

    Raises:
        RunError: the record is damaged.
    """
    path = run.trial(number) / "candidate.json"
    try:
        return Candidate.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise RunError(f"a trial's record must be as it was written; {path} is not; remove that folder") from error


def read_candidates(run: RunFolder) -> list[Candidate]:
    """Records of all finished trials, by number."""
    numbers = sorted(_trial_numbers(run))
    found = (read_candidate(run, number) for number in numbers)
    return [candidate for candidate in found if candidate is not None]


def _trial_numbers(run: RunFolder) -> Iterator[int]:
    folder = run.root / "trials"
    if folder.is_dir():
        yield from (int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def remove_trial(run: RunFolder, number: int) -> None:
    """Remove what an interrupted trial left behind."""
    shutil.rmtree(run.trial(number), ignore_errors=True)


def read_baseline(run: RunFolder) -> Measurement:
    """Figures of the uncompressed file."""
    return Measurement.model_validate_json((run.baseline / "measurement.json").read_text(encoding="utf-8"))


def read_analysis(run: RunFolder) -> Analysis:
    """What was found in the base."""
    return Analysis.model_validate_json((run.baseline / "analysis.json").read_text(encoding="utf-8"))


def read_facts(run: RunFolder) -> dict[str, Any]:
    """Environment in which the baseline was measured."""
    facts: dict[str, Any] = json.loads((run.baseline / "facts.json").read_text(encoding="utf-8"))
    return facts


def write_task(run: RunFolder, task: dict[str, Any], reference_inputs: Sequence[NDArray[Any]]) -> None:
    """Keep what an export needs of the data, so that it needs no data.

    Args:
        task: ``class_names preprocessing input_names``; plain JSON values.
        reference_inputs: a few examples as model inputs, one array (examples, ...) for each input.
    """
    write_json(run.baseline / "task.json", task)
    np.savez(run.baseline / "reference_inputs.npz", *reference_inputs)


def read_task(run: RunFolder) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
    """What :func:`write_task` kept.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        task: dict[str, Any] = json.loads((run.baseline / "task.json").read_text(encoding="utf-8"))
        with np.load(run.baseline / "reference_inputs.npz", allow_pickle=False) as arrays:
            return task, tuple(np.asarray(arrays[f"arr_{i}"]) for i in range(len(task["input_names"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"an export needs the run's task.json and reference_inputs.npz; {run.baseline}: {error}; "
            "restore the folder, or search again in another one"
        ) from error
