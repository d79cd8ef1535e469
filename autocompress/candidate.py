"""What was measured on a candidate's file, and the record of one trial."""

from __future__ import annotations

import math
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from autocompress.plan import Plan

Z_95 = 1.959964


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(_Record):
    """Top-1 hits of an exported file on one split, paired with the baseline file's hits.

    ``lost`` counts the examples only the baseline gets right, ``gained`` those only the candidate does.
    """

    correct: int
    total: int
    lost: int = 0
    gained: int = 0

    @property
    def fraction(self) -> float:
        """Accuracy in [0, 1]."""
        return self.correct / self.total

    @property
    def drop_points(self) -> float:
        """Baseline accuracy minus candidate accuracy, in percentage points."""
        return 100.0 * (self.lost - self.gained) / self.total

    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the accuracy, in [0, 1] (Wilson 1927)."""
        n, p, z = self.total, self.fraction, Z_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def drop_interval_points(self) -> tuple[float, float]:
        """Paired 95 % interval of the drop in points (Agresti and Min 2005: half a pair added to each cell)."""
        n = self.total + 2
        lost, gained = self.lost + 0.5, self.gained + 0.5
        delta = (lost - gained) / n
        half = Z_95 * math.sqrt(max(lost + gained - n * delta * delta, 0.0)) / n
        return 100.0 * (delta - half), 100.0 * (delta + half)


class Score(_Record):
    """A user's metric of an exported file on one split, beside the baseline file's on the same examples.

    Wherever an accuracy is read, 0.01 of the metric is a point. Intervals are paired percentile bootstraps over
    the examples (Efron 1979), 95 %.
    """

    value: float
    baseline: float
    total: int
    low: float
    high: float
    drop_low_points: float
    drop_high_points: float

    @property
    def fraction(self) -> float:
        """The metric."""
        return self.value

    @property
    def drop_points(self) -> float:
        """Baseline minus candidate, in hundredths of the metric."""
        return 100.0 * (self.baseline - self.value)

    def interval(self) -> tuple[float, float]:
        """Of the metric."""
        return self.low, self.high

    def drop_interval_points(self) -> tuple[float, float]:
        """Of the drop, in hundredths of the metric."""
        return self.drop_low_points, self.drop_high_points


class Latency(_Record):
    """Timing of a file, interleaved with the baseline in one sitting, in a process without torch.

    All but ``p90_ms`` are of the sitting's quiet pairs of blocks (:mod:`autocompress.deploy.timing`).
    """

    latency_ms: float
    p90_ms: float = Field(description="90th percentile of all runs of the file")
    baseline_ms: float
    ratio: float = Field(description="candidate time / baseline time within a pair")
    ratio_low: float
    ratio_high: float
    noisy: bool = Field(default=False, description="the baseline was slower than in the run's sittings before")


class Parity(_Record):
    """Agreement of the exported file with torch; exactly one of the two figures applies to a file."""

    relative_error: float | None = Field(
        default=None,
        description="float graphs: max |onnx - torch| / max |torch|; quantised ones without classes: of the root mean squares",
    )
    top1_agreement: float | None = Field(default=None, description="quantised graphs, torch simulating the same scales")
    examples: int


class Measurement(_Record):
    """All figures of one exported file. What was not measured (training was not worth it) is None."""

    sha256: str = Field(default="", description="digest of the file that was measured")
    size_bytes: int
    compressed_bytes: int
    size_ratio: float
    latency: Latency | None = None
    parity: Parity | None = None
    validation: Accuracy | Score | None = None
    test: Accuracy | Score | None = None


class Estimate(_Record):
    """What the ladder's cheap rungs say of a plan: bytes and time from tables, accuracy from shared weights.

    ``shared_drop_points`` and ``divergence`` (nats, Kullback-Leibler from the base's classes; the squared distance
    in units of variance where there are no classes) are what the member of the shared weights shows on a part of
    validation; ``drop_points`` is the drop that is expected of it after a short training. They are None where the
    tables alone put the plan beyond a limit. ``passing_drop_points`` is the part of it that a smaller network still
    owes to having been cut out of a trained one.
    """

    size_ratio: float
    latency_ratio: float
    divergence: float | None = None
    shared_drop_points: float | None = None
    drop_points: float | None = None
    passing_drop_points: float = 0.0


class Origin(StrEnum):
    """Where a candidate's plan came from; what is taken is the very file of an earlier run, measured anew."""

    ENQUEUED = "enqueued"
    SAMPLED = "sampled"
    MUTATED = "mutated"
    PROMOTED = "promoted"
    CONTINUED = "continued"
    TAKEN = "taken"


class State(StrEnum):
    """How a trial ended.

    ``complete`` was measured in full, on its file; ``estimated`` has no file, only an :class:`Estimate`;
    ``over_limit`` was stopped before training; ``failed`` has a reason.
    """

    COMPLETE = "complete"
    ESTIMATED = "estimated"
    OVER_LIMIT = "over_limit"
    FAILED = "failed"


class Candidate(_Record):
    """The record of one trial, as written to ``trials/NNNN/candidate.json``."""

    trial: int
    origin: Origin
    state: State
    name: str = Field(default="", description="what an enqueued plan is called, e.g. 'uniform w8a8'")
    reason: str = Field(default="", description="'kind: message' of a failure or of the limit that was broken")
    parent: int | None = Field(default=None, description="the trial that was promoted, or whose training was continued")
    total_steps: int = Field(default=0, description="training steps including those of all ancestors")
    violations: dict[str, float] = Field(default_factory=dict, description="limit -> amount; feasible when <= 0")
    started_s: float = Field(default=0.0, description="seconds of run time when the trial began")
    finished_s: float = Field(default=0.0, description="seconds of run time when the trial ended")
    stage_seconds: dict[str, float] = Field(default_factory=dict)
    plan: Plan
    measurement: Measurement | None = None
    estimate: Estimate | None = None

    @property
    def feasible(self) -> bool:
        """Measured in full and within every limit."""
        return self.state is State.COMPLETE and all(amount <= 0 for amount in self.violations.values())
