"""The next training: of which candidate, from which weights, and for how many steps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import TrialState
from safetensors.torch import load_file

from autocompress.candidate import Candidate, Origin
from autocompress.compression.distillation import NEXT_SEED
from autocompress.engine.estimating import START_UP_ESTIMATES
from autocompress.engine.expectation import trained_seconds
from autocompress.engine.ladder import Ladder
from autocompress.engine.pace import KNEES, cut_s, is_exhausted, left_s, length_s, steps_within
from autocompress.engine.promotion import LEAST_ESTIMATES, next_to_polish, next_to_promote, next_to_train_on
from autocompress.engine.run_folder import read_candidates
from autocompress.engine.session import ask
from autocompress.file_lock import exclusive
from autocompress.models import state_digest
from autocompress.plan import TrainingSpec

LEAST_STEPS = {"promote": 40, "train_on": 60, "polish": 60}
GROWTH = 1.5
"""A training that goes on is longer by this than all before it: a restart first loses what short ones gained."""


def enqueue_training(ladder: Ladder, action: str) -> optuna.Trial | None:
    """Enqueue the candidate that climbs, and ask for it; None if there is none or no time."""
    session = ladder.session
    with exclusive(session.run.root / "ask.lock"):
        attributes = _climber(ladder, read_candidates(session.run), action)
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
    horizon = length_s(ladder, "train_on")
    if action == "promote":
        least = 1 if is_exhausted(ladder, candidates) else LEAST_ESTIMATES
        shorts = {"base": seconds, "space": seconds * session.config.training.random_start_factor}
        parent = next_to_promote(candidates, busy, shorts, horizon, ladder.curves(candidates), least)
        seconds = seconds if parent is None else shorts[parent.plan.architecture.family]
    elif action == "polish":
        parent = next_to_polish(candidates, busy, KNEES)
    else:
        parent = next_to_train_on(candidates, busy, horizon, ladder.curves(candidates), left_s(ladder) / GROWTH)
    if parent is None:
        return None
    if action == "train_on":
        seconds = cut_s(ladder, max(seconds, GROWTH * trained_seconds(parent, candidates)))
    steps = steps_within(ladder, candidates, parent.plan, seconds, action)
    if steps < min(LEAST_STEPS[action], parent.plan.training.steps):
        return None
    origin = Origin.PROMOTED if action == "promote" else Origin.CONTINUED
    start = session.run.checkpoint(parent.trial)
    if action == "promote" and parent.parent is not None:  # other bits for a trained network
        shutil.copyfile(session.run.checkpoint(parent.parent), start)
    digest = state_digest(load_file(start)) if start.is_file() else ladder.shared.write_start(parent.plan, start)
    update = {"training": TrainingSpec(steps=steps, start=digest), "seed": parent.plan.seed + NEXT_SEED}
    # the sampler has heard of this plan as an estimate; parts of its tree would count twice
    attributes: dict[str, Any] = {
        "plan": parent.plan.model_copy(update=update).model_dump_json(),
        "origin": origin.value,
    }
    return attributes | {"parent": parent.trial, "name": parent.name, "rung": "train", "outside": True}
