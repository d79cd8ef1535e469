"""What a run allows one to say: the member a fixed rule picks, and what each kind of decision brought.

Nothing here reads the test split to choose; test figures are only repeated for what validation chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from autocompress.candidate import Candidate, Origin
from autocompress.engine import pareto
from autocompress.report import formats

CLAIM_DROP_POINTS = 1.0
"""The pick is the fastest front member whose validation drop is at most this; fixed before any run."""

LEAST_COMPARED = 3
"""Fewer candidates without a decision say nothing about it."""

Record = Mapping[str, Any]


class DecisionUse(NamedTuple):
    """How far a kind of decision got.

    ``volume_lost`` is the share of the hypervolume that the candidates without the decision do not reach;
    None where there is nothing to compare.
    """

    decision: str
    with_it: int
    without_it: int
    on_front: int
    volume_lost: float | None


def _ratios_differ(candidate: Candidate) -> bool:
    return len(set(candidate.plan.pruning.ratios.values())) > 1


def _precisions(candidate: Candidate) -> list[Any]:
    return list(candidate.plan.quantization.precisions.values())


DECISIONS: dict[str, Callable[[Candidate], bool]] = {
    "found by the search, not enqueued": lambda c: c.origin is not Origin.ENQUEUED,
    "continued training": lambda c: c.origin is Origin.CONTINUED,
    "blocks of the base dropped": lambda c: bool(c.plan.architecture.dropped_blocks),
    "model space": lambda c: c.plan.architecture.family != "base",
    "channels pruned": lambda c: any(c.plan.pruning.ratios.values()),
    "pruning ratio differs between groups": _ratios_differ,
    "8-bit activations (integer kernels)": lambda c: any(p.integer_activations for p in _precisions(c)),
    "weights below 8 bits": lambda c: any(p.stored_bits < 8 for p in _precisions(c)),
    "precision differs between layers": lambda c: len(set(_precisions(c))) > 1,
    "distillation (alpha > 0)": lambda c: c.plan.training.steps > 0 and c.plan.distillation.alpha > 0,
    "hint loss": lambda c: c.plan.training.steps > 0 and c.plan.distillation.hint_weight > 0,
}


def decision_uses(candidates: Sequence[Candidate]) -> list[DecisionUse]:
    """One row a kind of decision, over the feasible candidates."""
    feasible = [candidate for candidate in candidates if candidate.feasible]
    members = pareto.front(feasible)
    whole = _volume(feasible)
    rows = []
    for decision, uses in DECISIONS.items():
        rest = [candidate for candidate in feasible if not uses(candidate)]
        comparable = whole > 0 and 0 < len(rest) < len(feasible)
        lost = 1.0 - _volume(rest) / whole if comparable else None
        with_it, on_front = len(feasible) - len(rest), sum(map(uses, members))
        rows.append(DecisionUse(decision, with_it, len(rest), on_front, lost))
    return rows


def finding(use: DecisionUse) -> str:
    """What a row allows one to say; without a gain nothing is claimed."""
    if use.with_it == 0:
        return "no candidate within the limits uses it"
    if use.on_front == 0:
        return "brought nothing: no member of the front uses it"
    if use.without_it < LEAST_COMPARED or use.volume_lost is None:
        return f"cannot be told: {use.without_it} of the candidates do without it"
    if use.volume_lost < 0.01:
        return "brought next to nothing: the others reach as much"
    return f"without it {100 * use.volume_lost:.0f} % of the hypervolume is not reached"


def claimed(records: Sequence[Record]) -> Record | None:
    """Of front records (fastest first) the fastest within ``CLAIM_DROP_POINTS`` on validation."""
    return next((record for record in records if record["val_drop_points"] <= CLAIM_DROP_POINTS), None)


def verdict(records: Sequence[Record]) -> list[str]:
    """Sentences on the member the rule picks, for the head of the report."""
    limit = f"{CLAIM_DROP_POINTS:.1f} point"
    if not records:
        return ["No candidate was measured within the limits, so there is nothing to choose from."]
    pick = claimed(records)
    if pick is None:
        nearest = min(records, key=lambda record: float(record["val_drop_points"]))
        loss = formats.points(nearest["val_drop_points"])
        return [
            f"No front member stays within {limit} of validation accuracy.",
            f"The nearest, {_who(nearest)}, is {loss} points down.",
        ]
    return [_claim(pick, limit), _on_test(pick), *_origin(pick, records)]


def _claim(pick: Record, limit: str) -> str:
    rule = f"The fastest front member within {limit} of validation accuracy is {_who(pick)}"
    speed = _compared(pick, "latency_speedup", "faster", "slower")
    size = _compared(pick, "size_reduction", "smaller", "larger")
    lost = _lost("validation", pick["val_drop_points"])
    if pick["latency_speedup"] <= 1.0:
        return f"{rule}: {speed}, {size}, {lost}. The search brought no gain in speed."
    return f"{rule}: {speed}, {size}, {lost}."


def _compared(record: Record, column: str, better: str, worse: str) -> str:
    ratio = float(record[column])
    return f"{formats.times(ratio)} {better}" if ratio >= 1 else f"{formats.times(1 / ratio)} {worse}"


def _lost(split: str, drop: float) -> str:
    amount = formats.points(abs(drop))
    return f"{split} accuracy {amount} points {'lower' if drop > 0 else 'higher'}"


def _on_test(pick: Record) -> str:
    if pick["test_drop_points"] is None:
        return "Its test figures were not read."
    interval = f"[{formats.points(pick['test_drop_low'])}, {formats.points(pick['test_drop_high'])}]"
    drop = f"{formats.points(pick['test_drop_points'])} points (paired 95 % interval {interval})"
    return f"On test its accuracy is {formats.percent(pick['test_accuracy'])}, a drop of {drop}."


def _origin(pick: Record, records: Sequence[Record]) -> list[str]:
    if pick["origin"] != Origin.ENQUEUED.value:
        return []
    found = claimed([record for record in records if record["origin"] != Origin.ENQUEUED.value])
    other = f"the best found by the same rule is {_who(found)}" if found else "none was found by that rule"
    return [f"This plan was enqueued, not found by the search; {other}."]


def _who(record: Record) -> str:
    family = "of the base" if record["family"] == "base" else "of the model space"
    parent = "" if record["parent"] is None else f" from trial {record['parent']}"
    name = f" as {record['name']}" if record["name"] else ""
    return f"trial {record['trial']} ({family}, {record['origin']}{parent}{name})"


def _volume(candidates: Sequence[Candidate]) -> float:
    measured = [c.measurement for c in candidates if c.measurement is not None]
    return pareto.hypervolume([pareto.objective_vector(measurement) for measurement in measured])
