"""A candidate leaves its run as a folder that stands alone, and is checked again later, elsewhere."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from autocompress.candidate import Accuracy, Candidate, Score, State
from autocompress.config import StudyConfig
from autocompress.data.task import TaskData
from autocompress.deploy.card import (
    MODEL,
    Card,
    Check,
    LatencyConditions,
    Machine,
    Provenance,
    make_reference,
    read_card,
    read_reference,
    sha256,
    verify_folder,
    write_card,
)
from autocompress.deploy.machine_lock import training_batch
from autocompress.deploy.timing import time_latency
from autocompress.engine.baseline import load_task, training_threads
from autocompress.engine.run_folder import RunFolder, read_candidate, read_facts, read_task, run_config
from autocompress.errors import RunError, TrialFailed, VerificationFailed, first_line
from autocompress.pipeline import compare, evaluation_batch, file_answers

ACCURACY_TOLERANCE_POINTS = 0.2
"""Accuracy elsewhere may differ by this or by one example, whichever is more: kernels round differently."""

LATENCY_SECONDS = 1.0


# --- export -------------------------------------------------------------------------------------------------


def export_candidate(run: RunFolder, number: int, out: Path) -> Path:
    """Copy a trial's file out of its run, with a card and reference outputs, and verify the copy.

    The folder appears complete or not at all. Neither the data nor the model are needed.

    Args:
        run: a run, finished or not.
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
        _copy_file(run, candidate, folder)
        provenance, inputs = _provenance(run, candidate)
        try:
            # the outputs of the run's own file, which the copy must reproduce
            write_card(folder, provenance, make_reference(run.artifact(number), inputs))
        except TrialFailed as error:
            raise VerificationFailed(f"the file of trial {number} must run; {error}; export another") from error
        for check in verify_folder(folder):
            if not check.passed:
                raise VerificationFailed(f"the copy must do what its card says; {check.name}: {check.detail}")
    return out


def _complete(run: RunFolder, number: int) -> Candidate:
    candidate = read_candidate(run, number)
    advice = f"`autocompress front {run.root}` lists those worth exporting"
    if candidate is None:
        raise RunError(f"an export is of a finished trial; {run.root} has no trial {number}; {advice}")
    if candidate.state is not State.COMPLETE:
        reason = candidate.state.value + (f" ({candidate.reason})" if candidate.reason else "")
        raise RunError(f"an export is of a complete trial; trial {number} is {reason}; {advice}")
    if candidate.measurement is None or not run.artifact(number).is_file():
        raise RunError(f"a complete trial has a file; {run.artifact(number)} is missing; {advice}")
    return candidate


def _copy_file(run: RunFolder, candidate: Candidate, folder: Path) -> None:
    assert candidate.measurement is not None
    artifact, copy = run.artifact(candidate.trial), folder / MODEL
    shutil.copyfile(artifact, copy)
    found, stated = sha256(copy), candidate.measurement.sha256
    if found != stated:
        raise VerificationFailed(
            f"the file of trial {candidate.trial} must be as measured; its sha256 was {stated[:12]}, "
            f"its copy has {found[:12]}; export another"
        )


def _provenance(run: RunFolder, candidate: Candidate) -> tuple[Provenance, tuple[NDArray[Any], ...]]:
    """What the run knows of the candidate, and inputs to try it on."""
    task, inputs = read_task(run)
    study = run_config(run).study.name
    try:
        facts = read_facts(run)
        conditions = {key: facts["target"][key] for key in ("runtime", "threads", "batch_size")}
        if any(task.get("free_axes", {}).values()):
            conditions["sequence_length"] = facts["target"]["sequence_length"]
        provenance = Provenance(
            study=study,
            candidate=candidate,
            preprocessing=task["preprocessing"],
            class_names=tuple(task["class_names"]),
            latency=LatencyConditions(**conditions),
            machine=Machine(**{key: facts[key] for key in Machine.model_fields}),
            versions=facts["versions"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"a run's facts must be as they were written; {run.baseline}: {type(error).__name__}: "
            f"{first_line(error)}; restore the folder"
        ) from error
    return provenance, inputs


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` if the body succeeds, and else vanishes."""
    target = out.resolve()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunError(f"an export makes a new folder; {out} exists and is in use; choose another with -o")
        with _made(target.parent):
            temporary = target.parent / f".{target.name}.{os.getpid()}.partial"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                yield temporary
                temporary.replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunError(f"an export reads its run and writes {out}; {error}; choose another with -o") from error


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
    data = load_task(config)
    try:
        return Check("accuracy", True, _same_accuracy(folder, card, data, training_threads(config)))
    except (VerificationFailed, TrialFailed) as error:
        return Check("accuracy", False, str(error))


def _same_accuracy(folder: Path, card: Card, data: TaskData, threads: int) -> str:
    stated = _stated_accuracy(card, data)
    size = evaluation_batch(card.plan, card.latency.batch_size)
    # another process may be timing
    own = file_answers(data, folder / MODEL, data.validation, size, threads, training_batch)
    found = compare(data, data.validation, own, own)
    shown = f"{found.fraction:.2%} of {found.total} validation examples, {stated.fraction:.2%} on the card"
    if abs(found.fraction - stated.fraction) * stated.total > allowed_examples(stated.total) + 1e-6:
        raise VerificationFailed(f"accuracy must be within {_tolerance(stated.total)} of the card's; {shown}")
    return f"{shown}; {_tolerance(stated.total)} allowed"


def allowed_examples(total: int) -> int:
    """By how many correct answers out of ``total`` another machine may differ."""
    return max(1, math.floor(total * ACCURACY_TOLERANCE_POINTS / 100 + 1e-9))


def _tolerance(total: int) -> str:
    return f"{allowed_examples(total)} of {total} examples"


def _stated_accuracy(card: Card, data: TaskData) -> Accuracy | Score:
    stated = card.measurement.validation
    if stated is None:
        raise VerificationFailed("the card must state a validation accuracy; it has none")
    if data.class_names != card.class_names or len(data.validation) != stated.total:
        raise VerificationFailed(
            f"the study must be the card's, {card.study}; its validation split has {len(data.validation)} "
            f"examples of {len(data.class_names)} classes; the card's had {stated.total} of "
            f"{len(card.class_names)}"
        )
    return stated


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
    """The file timed against itself: the uncompressed one is not in an export."""
    arrays = read_reference(folder, card).inputs
    inputs = []
    for entry, array in zip(card.inputs, arrays, strict=True):
        free = card.latency.sequence_length
        lengths = [
            size if isinstance(size, int) else free or array.shape[axis] for axis, size in enumerate(entry.shape[1:], 1)
        ]
        inputs.append((entry.name, (card.latency.batch_size, *lengths), str(array.dtype)))
    found = time_latency(folder / MODEL, folder / MODEL, inputs, card.latency.threads, seconds=seconds)
    return f"{found.latency_ms:.3g} ms"
