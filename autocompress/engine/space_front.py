"""Members of a model space that the tables alone find worth a try: those of most capacity for their latency.

At equal latency the network that computes more is the more accurate one far more often than not (Ning et al. 2021,
Evaluating Efficient Performance Estimators of Neural Architectures, section 5), and it should not be too shallow. Both
are known without training. A Gaussian process looks for the trade-off, because a member takes long to be traced and both
are smooth in the options (docs/log.md); which member is best, training says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from autocompress.engine.guided import Guide
from autocompress.engine.space import PerLayer
from autocompress.errors import ModelError, TrialFailed
from autocompress.models import space_labels
from autocompress.operators import Operator
from autocompress.plan import ArchitectureSpec, Plan

MEMBERS = 40
"""To look at, at most: one must be built and traced."""
START_UP = 15
"""Of them drawn at random."""
_REFUSED = (ModelError, TrialFailed)


def space_front(guide: Guide, speedups: Sequence[float], seed: int, seconds: float) -> list[ArchitectureSpec]:
    """For each speed-up, up to the first that none reaches, the member of most capacity that does at the usual precision.

    Members that cannot be built or traced are left out.

    Args:
        speedups: over the baseline, the least first.
        seconds: to look for, at most.
    """
    sampler = optuna.samplers.GPSampler(n_startup_trials=START_UP, seed=seed)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    found: dict[int, ArchitectureSpec] = {}
    predictor, labels = guide.predictor, space_labels(guide.space.model_space)
    low, high = guide.bits_range()
    most_weights = 8 * guide.baseline.size_bytes / guide.easiest()[1] / (low * high) ** 0.5

    def draw(trial: optuna.Trial) -> Plan:
        variables = PerLayer(trial)
        # a process needs a value for every label, those that the member does not have as well
        choices = {label: variables.architecture(label, options, 0.0) for label, options in labels.items()}
        used = guide.space.used_choices(choices)
        found[trial.number] = ArchitectureSpec(family="space", choices=used)
        return Plan(architecture=found[trial.number])

    def measure(trial: optuna.Trial, plan: Plan) -> tuple[float, float]:
        operators = predictor.usual_operators(plan)
        weights = sum(math.prod(o.weight) for o in operators if o.layer)
        ratio = predictor.latency_ratio(operators)
        trial.set_constraint("weights", weights / most_weights - 1)
        trial.set_constraint("latency", ratio * min(speedups) - 1)
        return math.log(predictor.capacity(plan)), -math.log(ratio)

    end = time.perf_counter() + seconds
    first: list[tuple[optuna.Trial, Plan]] = []
    operators: list[Operator] = []
    for number in range(START_UP):
        if number and time.perf_counter() > end:
            break
        trial = study.ask()
        try:
            plan = draw(trial)
            operators += predictor.usual_operators(plan)
            first.append((trial, plan))
        except _REFUSED:
            study.tell(trial, state=TrialState.FAIL)
    # new shapes are timed together: each process that times some takes half a second to start
    predictor.latency_table.fill(operators)
    for trial, plan in first:
        study.tell(trial, measure(trial, plan))
    left_s = max(0.0, end - time.perf_counter())
    rest = MEMBERS - len(study.trials)
    study.optimize(lambda trial: measure(trial, draw(trial)), n_trials=rest, timeout=left_s, catch=_REFUSED)
    best: list[ArchitectureSpec] = []
    for target in speedups:
        fast = [t for t in study.best_trials if t.values[1] >= math.log(target)]
        if fast:
            best.append(found[max(fast, key=lambda t: t.values[0]).number])
    return best
