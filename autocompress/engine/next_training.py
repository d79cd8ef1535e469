"""The next training: of which candidate, from which weights, and for how many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState
from safetensors.torch import load_file

from autocompress.candidate import Candidate, Origin, State
from autocompress.compression.distillation import NEXT_SEED
from autocompress.config import TrainingSection
from autocompress.engine.continuation import continued_training, least_steps
from autocompress.engine.estimating import START_UP_ESTIMATES
from autocompress.engine.expectation import Curves
from autocompress.engine.ladder import Ladder
from autocompress.engine.pace import (
    KNEES,
    first_trained,
    is_exhausted,
    length_s,
    polishing_began_s,
    progress,
    steps_within,
    trained_for_long_last,
)
from autocompress.engine.promotion import (
    LEAST_ESTIMATES,
    next_to_polish,
    next_to_promote,
    next_to_reduce,
    next_to_train_on,
)
from autocompress.engine.run_folder import read_candidate, read_candidates
from autocompress.engine.session import ask
from autocompress.engine.time_left import training_time_left_s
from autocompress.file_lock import exclusive
from autocompress.models import state_digest
from autocompress.pipeline import QUANTIZED_STEPS
from autocompress.plan import TrainingSpec

LEAST_STEPS = {"promote": 40, "reduce": 40, "train_on": 60, "polish": 60}


def enqueue_training(ladder: Ladder, action: str) -> optuna.Trial | None:
    """Enqueue the candidate that climbs, and ask for it; None if there is none or no time."""
    session = ladder.session
    with exclusive(session.run.root / "ask.lock"):
        candidates = read_candidates(session.run)
        # another process may have taken the last one since the action was chosen
        attributes = None if progress(session, candidates) >= 1.0 else _climber(ladder, candidates, action)
        if attributes is None:
            return None
        session.study.enqueue_trial({}, user_attrs=attributes)
        return ask(session, START_UP_ESTIMATES)


def _climber(ladder: Ladder, candidates: Sequence[Candidate], action: str) -> dict[str, Any] | None:
    """What to train next, as the attributes of a trial, with the weights that it starts from on disk."""
    session = ladder.session
    seconds = length_s(ladder, action)
    states = (TrialState.RUNNING, TrialState.WAITING)
    running = session.study.get_trials(deepcopy=False, states=states)
    busy = {
        int(t.user_attrs["parent"]) for t in running if t.user_attrs.get("rung") == "train" and "parent" in t.user_attrs
    }
    # what is best after one long training, and not at the end, is trained next: there is a good front at any time
    horizon, curves = length_s(ladder, "train_on"), ladder.curves(candidates)
    origin = Origin.PROMOTED if action in ("promote", "reduce") else Origin.CONTINUED
    left = training_time_left_s(session, ladder.overhead_s)
    short_s = partial(short_training_s, seconds, left, session.config.training.random_start_factor)
    needs_s = partial(needed_s, {c.trial: c for c in candidates}, short_s, curves)
    if action == "reduce":
        last = trained_for_long_last(candidates)
        elapsed_s = session.elapsed_s()
        parent = next_to_reduce(candidates, busy, last, needs_s, curves, elapsed_s, ladder.overhead_s) if last else None
    elif action == "promote":
        least = 1 if is_exhausted(ladder, candidates) else LEAST_ESTIMATES
        parent = next_to_promote(candidates, busy, needs_s, horizon, curves, least, ladder.overhead_s)
        is_first = parent is not None and not busy and parent.plan.architecture.family not in first_trained(candidates)
        # a family's first file is trained for long at once, if it loses anything: there is a good front early
        seconds = horizon if parent is None or (is_first and loses(parent)) else short_s(parent)
    elif action == "polish":
        parent = next_to_polish(candidates, busy, KNEES, polishing_began_s(session, candidates))
    else:
        parent = next_to_train_on(candidates, busy, horizon, curves)
    if parent is None:
        return None
    steps = steps_within(ladder, candidates, parent.plan, seconds, action)
    lender = parent.parent if parent.state is State.ESTIMATED else None
    trained = None if lender is None else read_candidate(session.run, lender)
    least = min(LEAST_STEPS[action], parent.plan.training.steps)
    # where files are counted, each is made
    if origin is Origin.CONTINUED and session.config.study.timeout_s is not None:
        least = least_steps(session.config.training, (trained or parent).plan, LEAST_STEPS[action])
    if steps < least:
        return None
    start = session.run.checkpoint(parent.trial)
    digest = (
        state_digest(load_file(start)) if start.is_file() else ladder.shared.write_start(parent.plan, start, trained)
    )
    training = training_of(session.config.training, parent, trained, origin, steps, digest)
    update = {"training": training, "seed": parent.plan.seed + NEXT_SEED}
    # the sampler has heard of this plan as an estimate; parts of its tree would count twice
    attributes: dict[str, Any] = {
        "plan": parent.plan.model_copy(update=update).model_dump_json(),
        "origin": origin.value,
    }
    name = "" if parent.origin is Origin.TAKEN else parent.name
    return attributes | {"parent": parent.trial, "name": name, "rung": "train", "outside": True}


def training_of(
    settings: TrainingSection, parent: Candidate, trained: Candidate | None, origin: Origin, steps: int, start: str
) -> TrainingSpec:
    """The training of a candidate that climbs.

    Args:
        parent: the estimate that is promoted, or what is trained on: a file, or the estimate of less of one.
        trained: the file whose weights an estimate begins with; None where they are the shared ones.
        origin: of the candidate, promoted or continued.
        steps: that fit into the time.
        start: digest of the weights.
    """
    if origin is Origin.CONTINUED:
        return continued_training(settings, parent, (trained or parent).plan, steps, start)
    if trained is None:
        return TrainingSpec(steps=steps, start=start)
    # what is left of a trained network is no random start
    rest = TrainingSpec(steps=steps, start=start, learning_rate=settings.learning_rate)
    if not only_rounds(parent, trained):
        return rest
    return rest.model_copy(update={"steps": min(steps, QUANTIZED_STEPS), "quantized_fraction": 1.0})


def only_rounds(newcomer: Candidate, trained: Candidate) -> bool:
    """Whether an estimate has but other bits than a file: its weights need no more training before they are rounded."""
    return newcomer.plan.network == trained.plan.network


def loses(newcomer: Candidate) -> bool:
    """Whether an estimate expects a drop that longer training could take away."""
    expected = None if newcomer.estimate is None else newcomer.estimate.drop_points
    return expected is None or expected > 0


def short_training_s(seconds: float, left: float, random_start_factor: float, newcomer: Candidate) -> float:
    """Length of a first training: longer for what starts at random, or from what did and is shared, if so much is left."""
    at_random = newcomer.plan.architecture.family == "space" and newcomer.parent is None
    return min(left, seconds * (random_start_factor if at_random else 1.0))


def needed_s(
    candidates: Mapping[int, Candidate], short_s: Callable[[Candidate], float], curves: Curves, newcomer: Candidate
) -> float:
    """Seconds of a short training that are used: only rounding a file to other bits takes few steps, whatever time it has.

    Args:
        candidates: by their trials.
        short_s: seconds that a newcomer gets.
    """
    if newcomer.parent is None or not only_rounds(newcomer, candidates[newcomer.parent]):
        return short_s(newcomer)
    return min(short_s(newcomer), QUANTIZED_STEPS * curves.seconds_per_step(newcomer))
