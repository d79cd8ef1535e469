"""Files that were timed while the machine was busy are timed again, between the trials."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from autocompress.candidate import Candidate, Latency, State
from autocompress.deploy.timing import is_slowed
from autocompress.engine.baseline import measure_latency
from autocompress.engine.limits import violations
from autocompress.engine.pareto import front
from autocompress.engine.run_folder import amend, read_candidates
from autocompress.engine.session import Session
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.errors import TrialFailed

_SHARE = 0.02
"""Of the run's time that a process spends on it."""


@dataclass
class SecondSittings:
    """What one process has timed again."""

    session: Session
    _spent_s: float = 0.0
    _tries: Counter[int] = field(default_factory=Counter)

    def take_(self) -> None:
        """Time each file once whose baseline was slowed down, members of the front first, while there is time for it."""
        taken: set[int] = set()
        while self._spent_s <= _SHARE * self.session.elapsed_s():
            candidates = read_candidates(self.session.run)
            usual_ms = usual_baseline_ms(self.session.baseline, candidates)
            due = [c for c in candidates if c.trial not in taken and _is_due(c, usual_ms)]
            if not due:
                return
            members = {c.trial for c in front(candidates)}
            chosen = min(due, key=lambda c: (self._tries[c.trial], c.trial not in members, -_latency(c).baseline_ms))
            taken.add(chosen.trial)
            self._tries[chosen.trial] += 1
            began = time.perf_counter()
            self._time_again(chosen, usual_ms)
            self._spent_s += time.perf_counter() - began

    def _time_again(self, candidate: Candidate, usual_ms: float) -> None:
        session, run = self.session, self.session.run
        path, baseline = run.artifact(candidate.trial), run.baseline / "model.onnx"
        try:
            found = measure_latency(path, baseline, session.bench.data, session.config.target, usual_ms)
        except TrialFailed:
            return  # it was timed before, so the machine is at fault, and the first figure stands

        def with_the_better(c: Candidate) -> Candidate:
            # of the record as it is now: another process may have timed the file meanwhile
            before = _latency(c)
            if found.baseline_ms >= before.baseline_ms:
                return c
            assert c.measurement is not None
            measurement = c.measurement.model_copy(update={"latency": found})
            broken = violations(session.config.limits, measurement, session.baseline.size_bytes)
            session.watcher.note(
                f"timed trial {c.trial} again: {1 / before.ratio:.1f}x -> {1 / found.ratio:.1f}x faster"
            )
            return c.model_copy(update={"measurement": measurement, "violations": broken})

        amend(run, candidate.trial, with_the_better)


def _is_due(candidate: Candidate, usual_ms: float) -> bool:
    # the baseline beside itself is never off
    if candidate.state is not State.COMPLETE or candidate.plan.changes_nothing:
        return False
    return is_slowed(_latency(candidate).baseline_ms, usual_ms)


def _latency(candidate: Candidate) -> Latency:
    assert candidate.measurement is not None and candidate.measurement.latency is not None  # what is complete has it
    return candidate.measurement.latency
