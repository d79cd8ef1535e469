"""What the baseline usually takes in a run, by which a sitting on a busy machine is told.

What keeps the machine busy for minutes slows a large baseline down and hardly a small file, or a small one even more
(docs/log.md): whole sittings are off by a quarter, and no look at one of them shows it. Other sittings of the run do,
as far as the baseline was slowed down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autocompress.candidate import Candidate, Measurement


def usual_baseline_ms(baseline: Measurement, candidates: Sequence[Candidate]) -> float:
    """What the baseline takes while the machine is quiet: the lower quartile over the run's sittings.

    Not the least, which a moment of a higher clock would set for good.
    """
    # the plan that changes nothing has the baseline's own sitting
    timed = [baseline, *(c.measurement for c in candidates if c.measurement and not c.plan.changes_nothing)]
    return float(np.quantile([m.latency.baseline_ms for m in timed if m.latency is not None], 0.25))
