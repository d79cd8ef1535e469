"""A candidate leaves its run as a folder that stands alone, and is checked again later, elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Accuracy, Candidate, State
from autocompress.config import StudyConfig
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData
from autocompress.deploy.card import (
    MODEL,
    Card,
    Check,
    Provenance,
    make_reference,
    read_card,
    read_reference,
    sha256,
    verify_folder,
    write_card,
)
from autocompress.deploy.machine_lock import training_batch
from autocompress.deploy.measure import Batch, hits
from autocompress.deploy.timing import time_latency
from autocompress.errors import RunError, TrialFailed, VerificationFailed
from autocompress.pipeline import EVALUATION_BATCH
from autocompress.search.baseline import training_threads
from autocompress.search.run_folder import RunFolder, read_candidate, read_facts, read_task, run_config

ACCURACY_TOLERANCE_POINTS = 0.2
"""Accuracy on another machine may differ by this or by one example, whichever is more: kernels round apart."""

LATENCY_SECONDS = 1.0


# --- export -------------------------------------------------------------------------------------------------


def export_candidate(run: RunFolder, number: int, out: Path) -> Path:
    """Copy a trial's file out of its run, with a card and reference outputs, and verify the copy.

    The folder appears complete or not at all. Neither the data nor the model are needed.

    Args:
        number: of a complete trial.
        out: a folder that does not exist yet or is empty.

    Returns:
        The folder.

    Raises:
        RunError: there is no such trial, it has no file, or ``out`` is in use or cannot be written.
        VerificationFailed: the trial's file is not the one that was measured, or the copy is not the file.
    """
    candidate = _complete(run, number)
    with _appearing(out) as folder:
        try:
            _fill(run, candidate, folder)
        except TrialFailed as error:
            raise VerificationFailed(
                f"the file of trial {number} must run as measured; {error}; export another trial"
            ) from error
        failed = [check for check in verify_folder(folder) if not check.passed]
        if failed:
            raise VerificationFailed(
                f"the copied file must do what its card says; {failed[0].name}: {failed[0].detail}; export it again"
            )
    return out


def _complete(run: RunFolder, number: int) -> Candidate:
    candidate = read_candidate(run, number)
    if candidate is None:
        raise RunError(
            f"an export is of a finished trial; {run.root} has no trial {number}; "
            f"`autocompress front {run.root}` lists those worth exporting"
        )
    if candidate.state is not State.COMPLETE:
        raise RunError(
            f"an export is of a complete trial; trial {number} is {candidate.state.value} ({candidate.reason}); "
            f"`autocompress front {run.root}` lists those worth exporting"
        )
    if candidate.measurement is None or not run.artifact(number).is_file():
        raise RunError(
            f"a complete trial has a file; {run.artifact(number)} is missing; restore it or export another trial"
        )
    return candidate


def _fill(run: RunFolder, candidate: Candidate, folder: Path) -> None:
    """The file, its card and its references; the outputs are those of the run's own file."""
    assert candidate.measurement is not None
    artifact = run.artifact(candidate.trial)
    shutil.copyfile(artifact, folder / MODEL)
    found, stated = (folder / MODEL).stat().st_size, candidate.measurement.size_bytes
    if found != stated or sha256(folder / MODEL) != sha256(artifact):
        raise VerificationFailed(
            f"the file of trial {candidate.trial} must be as measured; it had {stated} bytes, the copy has {found}; "
            "export another trial"
        )
    task, inputs = read_task(run)
    provenance = Provenance(
        study=run_config(run).study.name,
        candidate=candidate,
        preprocessing=task["preprocessing"],
        class_names=tuple(task["class_names"]),
        facts=read_facts(run),
    )
    write_card(folder, provenance, make_reference(artifact, inputs))


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the body succeeds and else vanishes."""
    target = out.resolve()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunError(
                f"an export makes a new folder; {out} exists and is not empty; choose another with -o"
            )
        with _made(target.parent):
            temporary = target.parent / f".{target.name}.{os.getpid()}.partial"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                yield temporary
                os.replace(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"an export needs a folder that can be written; {out}: {error}; choose another with -o"
        ) from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder with its parents; those that were missing are removed again if the body fails."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


# --- verify -------------------------------------------------------------------------------------------------


def verify_accuracy(folder: Path, config: StudyConfig) -> Check:
    """Compare an export's validation accuracy with its card's, on the data of its study; test is not read.

    Raises:
        DataError: the data cannot be loaded.
        VerificationFailed: the card cannot be read.
    """
    card = read_card(folder)
    data = load_data(config.data, config.study.seed)
    try:
        return Check("accuracy", True, _same_accuracy(folder, card, data, training_threads(config)))
    except (VerificationFailed, TrialFailed) as error:
        return Check("accuracy", False, str(error))


def _same_accuracy(folder: Path, card: Card, data: TaskData, threads: int) -> str:
    stated = _stated_accuracy(card, data)
    own = hits(folder / MODEL, _validation_batches(data), threads)
    shown = f"{own.mean():.2%} of {len(own)} validation examples, {stated.fraction:.2%} on the card"
    if abs(int(own.sum()) - stated.correct) > allowed_examples(stated.total):
        raise VerificationFailed(f"accuracy must be within {_tolerance(stated.total)} of the card's; {shown}")
    return f"{shown}; {_tolerance(stated.total)} allowed"


def allowed_examples(total: int) -> int:
    """By how many correct answers out of ``total`` another machine may differ."""
    return max(1, int(total * ACCURACY_TOLERANCE_POINTS / 100))


def _tolerance(total: int) -> str:
    return (
        f"{ACCURACY_TOLERANCE_POINTS} points or one example"
        if allowed_examples(total) == 1
        else f"{ACCURACY_TOLERANCE_POINTS} points"
    )


def _stated_accuracy(card: Card, data: TaskData) -> Accuracy:
    stated = card.measurement.validation
    if stated is None:
        raise VerificationFailed("the card must state a validation accuracy; it has none")
    if data.class_names != card.class_names or len(data.validation) != stated.total:
        raise VerificationFailed(
            f"the study must be the one of the card ({card.study}); its validation split has "
            f"{len(data.validation)} examples of {len(data.class_names)} classes, the card's had {stated.total} "
            f"of {len(card.class_names)}"
        )
    return stated


def _validation_batches(data: TaskData) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
    for inputs, labels in data.batches(data.validation, EVALUATION_BATCH):
        with training_batch():  # another process may be timing
            yield tuple(x.numpy() for x in inputs), labels.numpy()


def latency_line(folder: Path, seconds: float = LATENCY_SECONDS) -> str:
    """Latency on this machine beside the card's, for a reader to judge; nothing fails here."""
    try:
        card = read_card(folder)
        here = _latency_here(folder, card, seconds)
        there = card.measurement.latency
    except Exception as error:  # a machine on which timing does not work must not fail a file that does
        return f"latency: could not be measured here: {error}"
    conditions = f"{card.latency.threads} thread(s), batch {card.latency.batch_size}"
    stated = f"{there.latency_ms:.3g} ms ({1 / there.ratio:.2f}x)" if there is not None else "no figure"
    return f"latency: {here} here, {conditions}; the card has {stated} on {card.machine.cpu}"


def _latency_here(folder: Path, card: Card, seconds: float) -> str:
    """The median of the file timed against itself: the uncompressed one is not in an export."""
    arrays = read_reference(folder, card).inputs
    inputs = [
        (entry.name, (card.latency.batch_size, *array.shape[1:]), str(array.dtype))
        for entry, array in zip(card.inputs, arrays, strict=True)
    ]
    found = time_latency(folder / MODEL, folder / MODEL, inputs, card.latency.threads, seconds)
    return f"{found.latency_ms:.3g} ms{' (noisy)' if found.noisy else ''}"
