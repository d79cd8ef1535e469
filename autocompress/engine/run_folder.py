"""The run folder: where everything of a study lies, and reading it back."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from autocompress.candidate import Candidate, Measurement, State
from autocompress.config import StudyConfig, load_study, to_toml
from autocompress.errors import RunError
from autocompress.file_lock import exclusive
from autocompress.whole_file import written_whole

if TYPE_CHECKING:  # it needs torch, whose import takes longer than reading thousands of records
    import optuna

    from autocompress.analysis import Analysis

Content = TypeVar("Content")


class _Stamp(NamedTuple):
    """Tells one version of a file from another: a record is always replaced by a new file, never written into."""

    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. All names below the root are made here, never taken from a file.

    Keeps the records that were read through it, so that reading them all again costs a look at each file's stamp.
    """

    root: Path
    _read: dict[int, tuple[_Stamp, Candidate]] = field(default_factory=dict, init=False, repr=False, compare=False)

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
    with written_whole(path) as file:
        file.write(text.encode())


def write_study(run: RunFolder, config: StudyConfig) -> None:
    """Keep the resolved study with its run."""
    run.study_file.write_text(to_toml(config), encoding="utf-8")


def record(run: RunFolder, candidate: Candidate) -> None:
    """Write a trial's record, which makes the trial count; before it the plan and the measurement on their own.

    A plan that was only estimated has the record alone: it is one of thousands, and each file is a sync.
    """
    folder = run.trial(candidate.trial)
    folder.mkdir(parents=True, exist_ok=True)
    if candidate.state is not State.ESTIMATED:
        write_json(folder / "plan.json", candidate.plan)
        if candidate.measurement is not None:
            write_json(folder / "measurement.json", candidate.measurement)
    write_json(folder / "candidate.json", candidate)


def amend(run: RunFolder, number: int, change: Callable[[Candidate], Candidate]) -> None:
    """Rewrite a finished trial's record by what it is now, so that nothing is lost that another process changes in it."""
    with exclusive(run.root / "amend.lock"):
        candidate = read_candidate(run, number)
        assert candidate is not None
        changed = change(candidate)
        if changed is not candidate:
            record(run, changed)


def read_candidate(run: RunFolder, number: int) -> Candidate | None:
    """The record of one trial; None if it has none (unknown, or still running).

    Raises:
        RunError: the record is damaged.
    """
    return _read_record(run, f"{run.root}/trials", number)


def read_candidates(run: RunFolder) -> list[Candidate]:
    """Records of all finished trials, by number; only what is new or was rewritten is parsed.

    Raises:
        RunError: a record is damaged.
    """
    numbers = sorted(_trial_numbers(run))
    for gone in run._read.keys() - set(numbers):
        run._read.pop(gone, None)
    trials = f"{run.root}/trials"
    found = (_read_record(run, trials, number) for number in numbers)
    return [candidate for candidate in found if candidate is not None]


def _read_record(run: RunFolder, trials: str, number: int) -> Candidate | None:
    # plain text for the path: thousands of Path objects would take longer than the look at the files
    path = f"{trials}/{number:04d}/candidate.json"
    try:
        known = run._read.get(number)
        if known is not None and known[0] == _stamp(os.stat(path)):  # noqa: PTH116
            return known[1]
        with open(path, "rb") as file:  # noqa: PTH123
            stamp, content = _stamp(os.fstat(file.fileno())), file.read()
        candidate = Candidate.model_validate_json(content)
    except FileNotFoundError:
        run._read.pop(number, None)
        return None
    except ValidationError as error:
        raise RunError(f"a trial's record must be as it was written; {path} is not; remove that folder") from error
    run._read[number] = stamp, candidate
    return candidate


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _trial_numbers(run: RunFolder) -> Iterator[int]:
    folder = run.root / "trials"
    if folder.is_dir():
        yield from (int(name) for name in os.listdir(folder) if name.isdigit())  # noqa: PTH208


def remove_trial(run: RunFolder, number: int) -> None:
    """Remove what an interrupted trial left behind."""
    shutil.rmtree(run.trial(number), ignore_errors=True)


def read_baseline(run: RunFolder) -> Measurement:
    """Figures of the uncompressed file."""
    return of_baseline(run, "measurement.json", Measurement.model_validate_json)


def read_analysis(run: RunFolder) -> Analysis:
    """What was found in the base."""
    from autocompress.analysis import Analysis

    return of_baseline(run, "analysis.json", Analysis.model_validate_json)


def read_analysis_content(run: RunFolder) -> dict[str, Any]:
    """What was found in the base, as the file has it: for views, which need no torch."""
    content: dict[str, Any] = of_baseline(run, "analysis.json", json.loads)
    return content


def read_study(run: RunFolder) -> optuna.Study | None:
    """The study in the run's journal, to look at; None if there is none, or it lies in another storage."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not run.journal.is_file():
        return None
    storage = JournalStorage(JournalFileBackend(str(run.journal)))
    studies = storage.get_all_studies()  # one, or none if the search was killed before it was made
    return optuna.load_study(study_name=studies[0].study_name, storage=storage) if studies else None


def read_facts(run: RunFolder) -> dict[str, Any]:
    """Environment in which the baseline was measured."""
    facts: dict[str, Any] = of_baseline(run, "facts.json", json.loads)
    return facts


def of_baseline(run: RunFolder, name: str, parse: Callable[[bytes], Content]) -> Content:
    """What a file of the baseline holds.

    Raises:
        RunError: it is missing or damaged.
    """
    path = run.baseline / name
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, EOFError, ValueError, SafetensorError) as error:
        raise RunError(
            f"a run has its baseline's files; {path} is {'damaged' if path.is_file() else 'missing'}; "
            "restore it, or search again in another folder"
        ) from error


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
