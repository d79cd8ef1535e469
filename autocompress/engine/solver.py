"""The best plan for a target, from tables: one option for each unit, by an integer programme.

A multiple-choice knapsack with two resources (Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter 11),
solved by HiGHS in milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

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
    solution = milp(
        np.concatenate([error, np.full(2, EXCESS)]),
        constraints=[
            LinearConstraint(choose, 1, 1),
            LinearConstraint(vstack([csr_array(rows)]), -np.inf, targets / scale),
        ],
        integrality=np.concatenate([np.ones(len(flat)), np.zeros(2)]),
        bounds=Bounds(0, np.concatenate([np.ones(len(flat)), np.full(2, np.inf)])),
        options={"presolve": False, "mip_rel_gap": GAP, "time_limit": TIME_LIMIT_S},
    )
    if solution.x is None:
        raise AssertionError(f"every unit has an option and targets may be exceeded: {solution.message}")
    starts = np.cumsum([0, *(len(options) for options in units)])
    return [int(solution.x[a:b].argmax()) for a, b in itertools.pairwise(starts)]
