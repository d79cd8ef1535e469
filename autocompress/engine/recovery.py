"""Trials whose worker died: told where their record is complete, put back where it is not."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from autocompress.engine.run_folder import (
    read_candidate,
    remove_trial,
)
from autocompress.engine.session import Session, running_trials
from autocompress.engine.tell import tell
from autocompress.engine.workers import is_alive
from autocompress.file_lock import exclusive


def recover(session: Session) -> None:
    """Settle trials whose worker died: tell those whose record is complete, put the others back."""
    with exclusive(session.run.root / "ask.lock"):
        for trial in running_trials(session):
            if not is_alive(session.run.workers, str(trial.user_attrs.get("worker", "none"))):
                settle(session, trial)


def settle(session: Session, trial: FrozenTrial) -> None:
    """Bring a trial that nobody works on to an end: tell its record, or put its plan back and clean up."""
    candidate = read_candidate(session.run, trial.number)
    if trial.state.is_finished():
        return
    if candidate is not None:
        tell(session, optuna.Trial(session.study, trial._trial_id), candidate)
        return
    remove_trial(session.run, trial.number)
    # first back, then failed: a death in between must not lose the plan
    _put_back(session, trial)
    session.study.tell(trial.number, state=TrialState.FAIL)
    session.watcher.note(f"trial {trial.number} was interrupted; what it left behind was removed")


def _put_back(session: Session, trial: FrozenTrial) -> None:
    """Enqueue the plan of an interrupted trial again, once; a sampled one has none."""
    again = any(t.user_attrs.get("again") == trial.number for t in session.study.get_trials(deepcopy=False))
    if "plan" in trial.user_attrs and not again:
        attributes = {key: value for key, value in trial.user_attrs.items() if key != "worker"}
        session.study.enqueue_trial(
            trial.system_attrs.get("fixed_params", {}), user_attrs=attributes | {"again": trial.number}
        )
