"""What lags most behind its share of the time, and how long it may take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autocompress.candidate import Candidate, Origin, State
from autocompress.engine.expectation import can_go_on
from autocompress.engine.ladder import Ladder
from autocompress.engine.mutation import FASTER, FEWER_BITS
from autocompress.engine.promotion import LEAST_ESTIMATES, untried_families
from autocompress.engine.session import Session, running_trials
from autocompress.engine.step_time import affordable_steps
from autocompress.engine.time_left import POLISH_SHARE, training_time_left_s
from autocompress.plan import Plan

SHARES = {"share": 0.05, "estimate": 0.06, "promote": 0.17, "train_on": 0.72}
"""Of the time so far: training the shared weights, estimating, short and long trainings.

One long training of the right member is worth more than many short ones, and sharing pays by its first minutes
(docs/log.md).
"""
LENGTHS = {"share": 0.08, "promote": 0.08, "reduce": 0.08, "train_on": 0.70}
"""Seconds of an action, as a share of the run time so far: budgets grow with the study."""
LONG = 0.12
"""Of the whole time, for the first training of a family and for one that goes on, at least (docs/log.md)."""
REST = 0.5
"""A training takes what is left of the time where that would be less than this part of it."""
KNEES = 3
"""With ``--polish``, knee points of the front that share the last part of the time."""
FILES_BEFORE_NEXT = 1 + len(FEWER_BITS)
"""Of a family at most, before the next one joins: the first, and less of it."""
REDUCTIONS = len(FEWER_BITS) + len(FASTER)
"""Files at most that are made of what was trained for long, right after it: the same in fewer bits, or cut down."""
JOINS_UNTIL = 0.5
"""Of the whole time: the next family takes as long for its first files as the one before, or it is left out."""
LEAST_CYCLES = 2
STALE = 24
LONGER = 3
"""Times the steps before, for a training that goes on where only trials are counted."""


def in_order_of_need(ladder: Ladder, candidates: Sequence[Candidate], used: float) -> list[str]:
    """Actions, the one that lags most behind its share of the time first; none makes sense before the shared weights do."""
    if ladder.session.polish and used >= 1 - POLISH_SHARE:
        return ["polish", "train_on"]
    climbed = _climbed(candidates)
    is_timed = ladder.session.config.study.timeout_s is not None
    if (used <= JOINS_UNTIL or not is_timed) and ladder.next_family() is not None:
        if len(climbed) >= FILES_BEFORE_NEXT:
            return ["join", *SHARES]
        # less of the first file, if that is worth its time
        return ["reduce" if is_timed and trained_for_long_last(candidates) else "promote", "join", *SHARES]
    if cold_families(ladder):
        return list(SHARES)
    estimated = sum(c.state is State.ESTIMATED for c in candidates)
    if untried_families(candidates):
        return ["promote", "estimate"]
    if not is_timed and estimated < LEAST_ESTIMATES * (len(climbed) + 1):
        return ["estimate", "promote", "train_on"]  # where files are counted, each is worth a choice
    first = {c.trial for c in first_trained(candidates).values()}  # which each family has, whatever its share
    trained = [(c.origin, c.finished_s - c.started_s) for c in climbed if c.trial not in first]
    spent = {
        "share": ladder.shared.seconds(),
        "estimate": sum(c.finished_s - c.started_s for c in candidates if c.state is State.ESTIMATED),
        "promote": sum(seconds for origin, seconds in trained if origin is Origin.PROMOTED),
        "train_on": sum(seconds for origin, seconds in trained if origin is Origin.CONTINUED),
    }
    total = sum(spent.values())
    order = sorted(SHARES, key=lambda action: spent[action] - SHARES[action] * total)
    return ["reduce", *order] if is_timed and _may_be_reduced(candidates) else order


def _may_be_reduced(candidates: Sequence[Candidate]) -> bool:
    """Whether what was trained for long last is still worth less of it: a minute then adds as much as many of training."""
    last = trained_for_long_last(candidates)
    return last is not None and sum(c.started_s >= last.finished_s for c in _climbed(candidates)) < REDUCTIONS


def first_trained(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Of each family the candidate that was trained first, for as long as those that go on; or one that was taken."""
    taken = [c for c in candidates if c.origin is Origin.TAKEN]
    files = [c for c in [*_climbed(candidates), *taken] if c.state is State.COMPLETE]
    latest_first = sorted(files, key=lambda c: c.started_s, reverse=True)
    return {c.plan.architecture.family: c for c in latest_first}


def trained_for_long(candidates: Sequence[Candidate]) -> list[Candidate]:
    """What was trained on, the first of each family, and what was taken from an earlier run."""
    first = {c.trial for c in first_trained(candidates).values()}
    long = (Origin.CONTINUED, Origin.TAKEN)
    return [c for c in candidates if c.origin in long or c.trial in first]


def trained_for_long_last(candidates: Sequence[Candidate]) -> Candidate | None:
    """The last of them whose weights can be used; None where there is none yet."""
    able = [c for c in trained_for_long(candidates) if can_go_on(c)]
    return max(able, key=lambda c: c.finished_s, default=None)


def _climbed(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in candidates if c.origin in (Origin.PROMOTED, Origin.CONTINUED)]


def polishing_began_s(session: Session, candidates: Sequence[Candidate]) -> float:
    """Run time at which the last part of the totals begins, in seconds; infinite while files are counted and too few made."""
    study = session.config.study
    begins = math.inf if study.timeout_s is None else (1 - POLISH_SHARE) * study.timeout_s
    if study.trials is None:
        return begins
    files = sorted(c.started_s for c in made(candidates))
    return min([begins, *files[math.ceil((1 - POLISH_SHARE) * study.trials) :][:1]])


def is_exhausted(ladder: Ladder, candidates: Sequence[Candidate]) -> bool:
    """Whether, where only trials are counted, plan after plan was estimated and none was new enough to be trained."""
    if ladder.session.config.study.timeout_s is not None:
        return False
    recent = sorted(candidates, key=lambda c: c.trial)[-STALE:]
    return len(recent) == STALE and all(c.state is State.ESTIMATED for c in recent)


def made(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that count towards the total of trials: estimates do not, nor does what was made elsewhere."""
    return [c for c in candidates if c.state is not State.ESTIMATED and c.origin is not Origin.TAKEN]


def progress(session: Session, candidates: Sequence[Candidate]) -> float:
    """Share of the totals that is used, with files that other processes are training."""
    files = {c.trial for c in made(candidates)}
    files |= {
        t.number for t in running_trials(session) if t.user_attrs.get("rung") == "train" and "taken" not in t.user_attrs
    }
    return session.progress(len(files))


def cold_families(ladder: Ladder) -> list[str]:
    """Families that take part, and whose shared weights say nothing yet."""
    record = ladder.shared.record()
    return [name for name in ladder.families if record.get(name, {"cycles": 0})["cycles"] < LEAST_CYCLES]


def nearly_over(ladder: Ladder) -> bool:
    """Whether there is no time left to train what would be estimated."""
    return training_time_left_s(ladder.session, ladder.overhead_s) < ladder.overhead_s


def length_s(ladder: Ladder, action: str) -> float:
    """Length of an action; where that would leave too little behind for another, all of the time that is left."""
    whole = ladder.session.config.study.timeout_s or 0.0
    lengths = {key: share * ladder.session.elapsed_s() for key, share in LENGTHS.items()}
    lengths |= {"train_on": max(lengths["train_on"], LONG * whole), "polish": POLISH_SHARE / KNEES * whole}
    left = training_time_left_s(ladder.session, ladder.overhead_s)
    # what was trained for long last is rounded to fewer bits, which takes a short training
    last = LENGTHS["promote"] * whole + ladder.overhead_s if action == "train_on" else 0.0
    if left >= (1 + REST) * lengths[action] + last:
        return lengths[action]
    return left - last if left - last >= REST * lengths[action] else left


def steps_within(ladder: Ladder, candidates: Sequence[Candidate], plan: Plan, seconds: float, action: str) -> int:
    """Steps that fit into so many seconds, at the speed of what was trained before; multiples of the study's where
    time is free.
    """
    if ladder.session.config.study.timeout_s is None:
        return plan.training.steps * (LONGER if action in ("train_on", "polish") else 1)
    if seconds <= 0:
        return 0
    return affordable_steps(ladder.session.bench, seconds, ladder.step_s(candidates, plan))
