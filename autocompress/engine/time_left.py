"""Time that is left to train in, before a study ends; one rule for all engines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from autocompress.candidate import Candidate, Origin, State
from autocompress.engine.session import Session

USUAL_OVERHEAD_S = 12.0
"""Of a file beside its training, until one was made."""
LATE = 0.1
"""Part of what is left of the time that a last training may be late by: its steps are counted out beforehand."""
POLISH_SHARE = 0.3
"""With ``--polish``, the last part of the totals, which knee points of the front share."""


def usual_overhead_s(candidates: Sequence[Candidate]) -> float:
    """Seconds that a file takes beside its training."""
    files = [c for c in candidates if c.state is State.COMPLETE and not c.plan.changes_nothing]
    files = [c for c in files if c.origin is not Origin.TAKEN]
    seconds = [c.finished_s - c.started_s - sum(c.stage_seconds.get(s, 0.0) for s in ("train", "teach")) for c in files]
    return statistics.median(seconds) if seconds else USUAL_OVERHEAD_S


def training_time_left_s(session: Session, overhead_s: float) -> float:
    """Seconds that a training may be given now, so that its file is there in time: before polishing begins, or the study
    ends; infinite without a timeout.

    Args:
        overhead_s: of the file beside its training.
    """
    timeout = session.config.study.timeout_s
    if timeout is None:
        return math.inf
    elapsed, polishing_s = session.elapsed_s(), (1 - POLISH_SHARE) * timeout
    ends = polishing_s if session.polish and elapsed < polishing_s else timeout
    return (1 - LATE) * (ends - elapsed) - overhead_s
