"""Files that an earlier run of the same base made: copied when a run begins, and measured anew as trials of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import optuna

from autocompress.candidate import Candidate, Origin, State
from autocompress.config import LimitsSection
from autocompress.deploy.card import sha256
from autocompress.engine.limits import violations
from autocompress.engine.promotion import knee_points
from autocompress.engine.run_folder import RunFolder, read_baseline, read_candidate, read_candidates, record
from autocompress.engine.session import Session
from autocompress.engine.trial import Current, Result, describe, measure_finished
from autocompress.errors import TrialFailed
from autocompress.file_lock import exclusive
from autocompress.plan import Plan

FILES = 6
"""Of the earlier front, those without which it would lose most hypervolume."""


def taken_folder(run: RunFolder) -> RunFolder:
    """Where copies lie, as trials of the earlier run."""
    return RunFolder(run.root / "shared" / "taken")


def take_files_(run: RunFolder, other: RunFolder, limits: LimitsSection, exact: Callable[[Plan], Plan]) -> None:
    """Copy the best files of an earlier run, with their weights and records.

    Args:
        limits: of this run; what is best by them need not be on the earlier front.
        exact: a plan in the bits that this machine computes exactly; files of other plans are left.
    """
    copies, baseline = taken_folder(run), read_baseline(other)
    known = [
        c.model_copy(update={"violations": violations(limits, c.measurement, baseline.size_bytes)})
        for c in read_candidates(other)
        if c.state is State.COMPLETE and c.measurement is not None
    ]
    for member in knee_points(known, FILES):
        file, weights = other.artifact(member.trial), other.checkpoint(member.trial)
        assert member.measurement is not None
        is_whole = file.is_file() and weights.is_file() and sha256(file) == member.measurement.sha256
        if not is_whole or exact(member.plan) != member.plan:
            continue
        copies.trial(member.trial).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copies.artifact(member.trial))
        shutil.copyfile(weights, copies.checkpoint(member.trial))
        name = f"trial {member.trial} of {other.root.name}"
        record(copies, member.model_copy(update={"name": name}))  # last: now the copy is whole


def enqueue_taken(session: Session) -> None:
    """Enqueue the copies that are not yet, to be measured before anything is trained, the one trained longest last."""
    copies = sorted(read_candidates(taken_folder(session.run)), key=lambda c: c.total_steps)
    with exclusive(session.run.root / "ask.lock"):
        known = {t.user_attrs.get("taken") for t in session.study.get_trials(deepcopy=False)}
        for copy in copies:
            if copy.trial not in known:
                session.study.enqueue_trial({}, user_attrs=_attributes(copy))


def _attributes(copy: Candidate) -> dict[str, Any]:
    attributes = {"plan": copy.plan.model_dump_json(), "origin": Origin.TAKEN.value, "name": copy.name}
    return attributes | {"taken": copy.trial, "rung": "train", "outside": True}


def make_taken(session: Session, current: Current, trial: optuna.Trial) -> Result:
    """Measure a copy: its accuracy by the runtime of today, its latency beside this run's baseline.

    The network in torch that it agreed with is gone; that it did is the earlier run's finding, of the very same bytes.
    """
    copies, number = taken_folder(session.run), int(trial.user_attrs["taken"])
    copy = read_candidate(copies, number)
    if copy is None or copy.measurement is None or copy.measurement.parity is None:
        raise TrialFailed("taken", f"the copy of {current.name} is gone")
    current.plan = copy.plan
    session.watcher.started(current.number, current.origin, describe(current.plan, current.name))
    shutil.copyfile(copies.artifact(number), session.run.artifact(current.number))
    shutil.copyfile(copies.checkpoint(number), session.run.checkpoint(current.number))
    measurement = measure_finished(session, current, copy.measurement.parity)
    if measurement.sha256 != copy.measurement.sha256:
        raise TrialFailed("taken", f"the copy of {current.name} is not the file that was measured")
    found = violations(session.config.limits, measurement, session.baseline.size_bytes)
    steps = copy.total_steps - copy.plan.training.steps
    return Result(State.COMPLETE, "", measurement, violations=found, steps_before=steps)
