"""What is better: objectives of a measured file, the front, and how much of the space it dominates.

All objectives are minimised and come from the validation split; the test split never enters here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Score
from autocompress.config import ObjectiveSection

ObjectiveVector = tuple[float, float, float]

REFERENCE_POINT: ObjectiveVector = (3.0, 0.0, 0.0)
"""3 points of validation accuracy lost, at the size and the latency of the uncompressed file."""


def objective_vector(measurement: Measurement) -> ObjectiveVector:
    """Validation drop in points, ln size ratio, ln latency ratio; ratios are candidate / baseline.

    Raises:
        ValueError: accuracy or latency was not measured.
    """
    validation, latency = _measured_in_full(measurement)
    return validation.drop_points, math.log(measurement.size_ratio), math.log(latency.ratio)


def scalar_objective(measurement: Measurement, objective: ObjectiveSection) -> float:
    """h(s) = alpha f(s) - beta g(s), to be maximised.

    f is the validation accuracy in [0, 1]; g the mean of size ratio and latency ratio to the uncompressed
    file, weighted by ``size_weight`` and ``latency_weight``. The baseline itself has g = 1.

    Raises:
        ValueError: accuracy or latency was not measured.
    """
    validation, latency = _measured_in_full(measurement)
    return scalarise(validation.fraction, measurement.size_ratio, latency.ratio, objective)


def scalarise(accuracy: float, size_ratio: float, latency_ratio: float, objective: ObjectiveSection) -> float:
    """h of an accuracy in [0, 1] and two ratios to the uncompressed file."""
    weights = (objective.size_weight, objective.latency_weight)
    cost = float(np.average([size_ratio, latency_ratio], weights=weights))
    return objective.alpha * accuracy - objective.beta * cost


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Feasible candidates that no other one dominates, fastest first.

    Of candidates with the same objectives only the earliest is kept.
    """
    rivals = sorted(_ranked(candidates), key=lambda candidate: candidate.trial)
    vectors = [_vector(candidate) for candidate in rivals]
    on_front = _non_dominated(np.array(vectors).reshape(-1, 3))
    members: dict[ObjectiveVector, Candidate] = {}
    for vector, candidate, keeps in zip(vectors, rivals, on_front, strict=True):
        if keeps:
            members.setdefault(vector, candidate)
    return [members[vector] for vector in sorted(members, key=lambda vector: vector[::-1])]


def ranks(points: ArrayLike) -> NDArray[np.int64]:
    """Non-dominated rank of each point (n x 3): 0 for the front, 1 for the front of the rest, and so on."""
    array = np.asarray(points, dtype=float).reshape(-1, 3)
    found, left = np.zeros(len(array), dtype=np.int64), np.arange(len(array))
    rank = 0
    while len(left):
        best = _non_dominated(array[left])
        found[left[best]] = rank
        left, rank = left[~best], rank + 1
    return found


def hypervolume(points: ArrayLike, reference: ObjectiveVector = REFERENCE_POINT) -> float:
    """Volume dominated by ``points`` (shape n x 3) and bounded by ``reference``; 0 if none dominates it."""
    # Private in Optuna 5, which has no public hypervolume; called here only, so a move breaks one line.
    from optuna._hypervolume import compute_hypervolume

    array = np.asarray(points, dtype=float).reshape(-1, len(reference))
    inside = array[(array < np.asarray(reference)).all(axis=1)]
    return float(compute_hypervolume(inside, np.asarray(reference))) if len(inside) else 0.0


def hypervolume_history(candidates: Iterable[Candidate]) -> list[tuple[float, float]]:
    """(seconds of run time, hypervolume so far) after each feasible candidate, in order of finishing."""
    history: list[tuple[float, float]] = []
    kept = np.empty((0, 3))
    volume = 0.0
    for candidate in sorted(_ranked(candidates), key=lambda candidate: candidate.finished_s):
        point = np.array(_vector(candidate))
        # Only a point that nothing dominates changes the volume, and few do in a long study.
        if not (kept <= point).all(axis=1).any():
            kept = np.vstack([kept[~(point <= kept).all(axis=1)], point])
            volume = hypervolume(kept)
        history.append((candidate.finished_s, volume))
    return history


def _measured_in_full(measurement: Measurement) -> tuple[Accuracy | Score, Latency]:
    if measurement.validation is None or measurement.latency is None:
        raise ValueError("objectives need validation accuracy and latency; the file was not measured in full")
    return measurement.validation, measurement.latency


def _ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.feasible and candidate.measurement is not None]


def _vector(candidate: Candidate) -> ObjectiveVector:
    assert candidate.measurement is not None
    return objective_vector(candidate.measurement)


def _non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Optuna's public way, `Study.best_trials`, needs a study made for the purpose and logs a line for each;
    # its sorting functions are private. The definition is two comparisons.
    weakly = (points[:, None] <= points[None]).all(axis=2)
    strictly = (points[:, None] < points[None]).any(axis=2)
    return np.asarray(~(weakly & strictly).any(axis=0))
