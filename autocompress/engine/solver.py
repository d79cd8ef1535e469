"""The best plan for a target, from tables: one option for each unit, by an integer programme.

A multiple-choice knapsack with two resources (Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter 11),
solved by HiGHS in milliseconds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

Vector = NDArray[np.float64]
GAP = 1e-3
"""Relative distance from the optimum at which the solver may stop: errors in a table are no more exact."""
TIME_LIMIT_S = 2.0
EXCESS = 1e3
"""Price of exceeding a target by its own size, in units of the largest error: a target is missed only where it must."""


@dataclass(frozen=True)
class Option:
    """What one choice for a unit costs; error in nats, bytes and milliseconds may be relative to any origin."""

    error: float
    size_bytes: float
    latency_ms: float


def solve(units: Sequence[Sequence[Option]], max_size_bytes: float, max_latency_ms: float) -> list[int]:
    """Index of the option of each unit with the least total error within both targets.

    Where no choice meets a target, it is exceeded as little as possible.

    Args:
        units: options of each unit, at least one.
        max_size_bytes: target of the sum of bytes.
        max_latency_ms: target of the sum of milliseconds.
    """
    if not units:
        return []
    flat = [option for options in units for option in options]
    error = np.array([option.error for option in flat])
    error = error / max(float(np.abs(error).max()), 1e-12)
    owner = np.repeat(np.arange(len(units)), [len(options) for options in units])
    one_each = coo_array((np.ones(len(flat)), (owner, np.arange(len(flat)))), shape=(len(units), len(flat)))
    resources = np.array([[o.size_bytes for o in flat], [o.latency_ms for o in flat]])
    targets = np.array([max_size_bytes, max_latency_ms])
    scale = np.maximum(np.abs(resources).max(axis=1), 1e-12)
    # one slack for each target, in units of the largest entry
    rows = np.hstack([resources / scale[:, None], -np.eye(2)])
    choose = csr_array(np.hstack([one_each.toarray(), np.zeros((len(units), 2))]))
    with _quiet_stdout():
        solution = _solve_programme(error, rows, choose, targets / scale, len(flat))
    if solution is None:
        raise AssertionError("every unit has an option and targets may be exceeded")
    starts = np.cumsum([0, *(len(options) for options in units)])
    return [int(solution[a:b].argmax()) for a, b in itertools.pairwise(starts)]


def _solve_programme(error: Vector, rows: Vector, choose: Any, targets: Vector, options: int) -> Vector | None:
    solution = milp(
        np.concatenate([error, np.full(2, EXCESS)]),
        constraints=[LinearConstraint(choose, 1, 1), LinearConstraint(csr_array(rows), -np.inf, targets)],
        integrality=np.concatenate([np.ones(options), np.zeros(2)]),
        bounds=Bounds(0, np.concatenate([np.ones(options), np.full(2, np.inf)])),
        options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT_S},
    )
    return None if solution.x is None else np.asarray(solution.x)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """HiGHS now and then writes a line of its own debugging to the process's standard output, past Python."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
