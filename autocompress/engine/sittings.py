"""What the sittings of a run say of its machine: what the baseline usually takes, and which files are timed again.

A neighbour that keeps the machine busy for minutes slows a large baseline down and leaves a small file alone, or the
other way round: whole sittings are off by a quarter, and no look at one of them shows it. Other sittings of the run do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autocompress.candidate import Candidate, Latency, Measurement
from autocompress.deploy.timing import is_slowed
from autocompress.engine.baseline import measure_latency
from autocompress.engine.limits import violations
from autocompress.engine.pareto import front
from autocompress.engine.run_folder import amend, read_candidates
from autocompress.engine.session import Session
from autocompress.errors import TrialFailed

_SHARE = 0.02
"""Of the run's time that is spent on timing files again."""


def usual_baseline_ms(baseline: Measurement, candidates: Sequence[Candidate]) -> float:
    """What the baseline takes while the machine is quiet: the lower quartile over the run's sittings.

    Not the least, which a moment of a higher clock would set for good.
    """
    timed = [baseline, *(c.measurement for c in candidates if c.measurement is not None)]
    return float(np.quantile([m.latency.baseline_ms for m in timed if m.latency is not None], 0.25))


@dataclass
class SecondSittings:
    """Times members of the front again whose baseline was slowed down, between the trials of one process."""

    session: Session
    _spent_s: float = 0.0
    _tries: Counter[int] = field(default_factory=Counter)

    def take_(self) -> None:
        """Time each such member once, the least tried first, while the share of time for it lasts."""
        taken: set[int] = set()
        while self._spent_s <= _SHARE * self.session.elapsed_s():
            candidates = read_candidates(self.session.run)
            usual_ms = usual_baseline_ms(self.session.baseline, candidates)
            # the baseline beside itself is never off
            others = [c for c in front(candidates) if c.trial not in taken and not c.plan.changes_nothing]
            due = [c for c in others if _is_off(_latency(c), usual_ms)]
            if not due:
                return
            chosen = min(due, key=lambda c: (self._tries[c.trial], -_latency(c).baseline_ms))
            taken.add(chosen.trial)
            self._tries[chosen.trial] += 1
            began = time.perf_counter()
            self._time_again(chosen, usual_ms)
            self._spent_s += time.perf_counter() - began

    def _time_again(self, candidate: Candidate, usual_ms: float) -> None:
        session, run, before = self.session, self.session.run, _latency(candidate)
        path, baseline = run.artifact(candidate.trial), run.baseline / "model.onnx"
        try:
            found = measure_latency(path, baseline, session.bench.data, session.config.target, usual_ms)
        except TrialFailed:
            return  # it was measured before, so the machine is at fault, and the first figure stands
        kept = found if found.baseline_ms < before.baseline_ms else before.model_copy(update={"noisy": True})

        def with_latency(c: Candidate) -> Candidate:
            assert c.measurement is not None
            measurement = c.measurement.model_copy(update={"latency": kept})
            broken = violations(session.config.limits, measurement, session.baseline.size_bytes)
            return c.model_copy(update={"measurement": measurement, "violations": broken})

        amend(run, candidate.trial, with_latency)
        if kept is found:
            session.watcher.note(
                f"timed trial {candidate.trial} again: {1 / before.ratio:.1f}x -> {1 / found.ratio:.1f}x faster"
            )


def _latency(candidate: Candidate) -> Latency:
    assert candidate.measurement is not None and candidate.measurement.latency is not None  # members of a front have it
    return candidate.measurement.latency


def _is_off(latency: Latency, usual_ms: float) -> bool:
    return latency.noisy or is_slowed(latency.baseline_ms, usual_ms)
