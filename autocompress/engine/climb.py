"""The ladder: many plans scored in seconds, the best trained for a while, the best of those for long.

F0: bytes and latency from tables. F1: a member of the shared weights on a part of validation. F2: a short training that
starts from the shared weights. F3: training on, for longer and longer. Candidates of F2 and F3 are files that are
measured, and only they are on the front. What to do next is what lags most behind its share of the time, so there is a
front early, and a search that is stopped or killed goes on by the records alone.
"""

from __future__ import annotations

from optuna.trial import TrialState

from autocompress.engine.estimating import START_UP_ESTIMATES, estimate, estimate_reduced, new_estimate
from autocompress.engine.ladder import Ladder, begin_
from autocompress.engine.next_training import LEAST_STEPS, enqueue_training
from autocompress.engine.pace import cold_families, in_order_of_need, is_exhausted, made, nearly_over, progress
from autocompress.engine.run_folder import read_candidates
from autocompress.engine.session import ask
from autocompress.engine.sharing import share
from autocompress.engine.taken_files import make_taken
from autocompress.engine.time_left import usual_overhead_s
from autocompress.engine.trial import attempt, make_file
from autocompress.file_lock import exclusive

SHARED_UNTIL = 0.7
"""Progress after which the shared weights are good enough."""


def climb(ladder: Ladder) -> bool:
    """Do what lags most behind its share of the time; False when the totals are used or nothing is left to do."""
    session = ladder.session
    candidates = read_candidates(session.run)
    ladder.predictor.fit_(candidates)
    ladder.overhead_s = usual_overhead_s(candidates)
    with exclusive(session.run.root / "ask.lock"):
        used = progress(session, read_candidates(session.run))
        if used >= 1.0:
            return False
        waiting = session.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        estimates_next = bool(waiting) and waiting[0].user_attrs.get("rung") == "estimate"
        is_cold = bool(cold_families(ladder))
        too_early = estimates_next and is_cold
        trial = ask(session, START_UP_ESTIMATES) if waiting and not too_early else None
    session.suggests = ladder.guide
    if trial is None and not too_early and not nearly_over(ladder):
        trial = estimate_reduced(ladder, candidates)
    if trial is None:
        exhausted = is_exhausted(ladder, candidates)
        for action in ["share"] if too_early else in_order_of_need(ladder, candidates, used):
            if action == "join" and not nearly_over(ladder):
                return _join(ladder)
            if action == "share" and (is_cold or (used < SHARED_UNTIL and not exhausted)):
                return share(ladder, candidates)
            if action == "estimate" and not nearly_over(ladder) and not exhausted:
                trial = new_estimate(ladder, candidates)
            elif action in LEAST_STEPS:
                trial = enqueue_training(ladder, action)
            if trial is not None:
                break
    if trial is None:
        return False
    trains = trial.user_attrs.get("rung") == "train"  # what the sampler draws has none, and is estimated
    make = make_file if trains else lambda s, c, t: estimate(ladder, s, c, t)
    make = make_taken if "taken" in trial.user_attrs else make
    candidate = attempt(session, trial, make)
    finished = read_candidates(session.run)
    session.watcher.finished(candidate, finished, session.progress(len(made(finished))))
    return True


def _join(ladder: Ladder) -> bool:
    """Let the next family take part."""
    family = ladder.next_family()
    assert family is not None
    ladder.session.watcher.note(f"looking for the first plans of {family}")
    begin_(ladder, family)
    return True
