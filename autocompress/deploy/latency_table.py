"""Latency of a plan from a table of its operators, without its file.

The table belongs to a machine, a version of the runtime and a number of threads. It is filled as operators are
met and kept on disk, so a second study of the same shapes measures nothing. Sums of operators miss what happens
between them (caches, changes of layout), so a run corrects them by files that it has measured: an affine map with
coefficients that are never negative, fitted by least squares of the relative error (as in nn-Meter, Zhang et al.
2021, and ProxylessNAS, Cai et al. 2019, without their predictors of single kernels).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from autocompress.deploy.operator_timing import OperatorTimes, time_operators
from autocompress.deploy.processor import instruction_sets, processor_model
from autocompress.errors import ConfigError
from autocompress.file_lock import exclusive
from autocompress.operators import FLOAT32, Operator
from autocompress.whole_file import written_whole

CACHE_VARIABLE = "AUTOCOMPRESS_CACHE"
"""Names the folder of what is kept for the machine, instead of ``autocompress`` in the user's cache."""
_FORMAT = 1
_TRUST = 0.3
"""Relative deviation of a coefficient from its prior that is as surprising as ``_TYPICAL_ERROR`` of a file."""
_TYPICAL_ERROR = 0.03

Vector = npt.NDArray[np.float64]


def cache_folder() -> Path:
    """Where tables are kept: ``$AUTOCOMPRESS_CACHE/latency``, else ``autocompress/latency`` in the user's cache."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress" / "latency"


# --- the table ----------------------------------------------------------------------------------------------


@dataclass
class _Content:
    """What is on disk: times as multiples of the reference operator's, whose time converts them."""

    reference_ms: float = 0.0
    run_ms: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)

    def merged(self, other: _Content) -> _Content:
        """Both; where they differ, this one. Milliseconds stay those of the first fill."""
        first = self if self.reference_ms > 0 else other
        return _Content(first.reference_ms, first.run_ms, other.ratios | self.ratios)


class LatencyTable:
    """Latency of operators on this machine.

    Args:
        threads: intra-op threads of the runtime.
        folder: where the table is kept; :func:`cache_folder` by default.
    """

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        self.threads = threads
        self.path = (folder or cache_folder()) / f"{machine_digest(threads)}.json"
        self._content = _read(self.path)

    def missing(self, operators: Iterable[Operator]) -> list[Operator]:
        """One operator for each key that was not measured yet."""
        return list({o.key: o for o in operators if o.key not in self._content.ratios}.values())

    def fill(self, operators: Iterable[Operator]) -> int:
        """Measure what is missing, in one process, while nothing trains; returns how many operators those were.

        Another process may fill the same table meanwhile: nothing that either measures is lost.

        Raises:
            TrialFailed: kind ``timing``; the operators cannot be timed.
            ConfigError: the table's folder cannot be written.
        """
        wanted = list(operators)
        if self.missing(wanted):
            self._content = _read(self.path).merged(self._content)
        missing = self.missing(wanted)
        if missing:
            self._add(missing, time_operators(missing, self.threads))
        return len(missing)

    def _add(self, measured: Sequence[Operator], times: OperatorTimes) -> None:
        ratios = {operator.key: ratio for operator, ratio in zip(measured, times.ratios, strict=True)}
        new = _Content(times.reference_ms, times.run_ms, ratios)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.path.with_suffix(".lock")):
                self._content = _read(self.path).merged(self._content).merged(new)
                _write(self.path, self._content)
        except OSError as error:
            raise ConfigError(
                f"the latency table is kept in a folder that can be written; {error}; "
                f"set {CACHE_VARIABLE} to another folder"
            ) from error

    @property
    def run_ms(self) -> float:
        """Fixed cost of a run of the runtime, beside its operators."""
        return self._content.run_ms

    def operator_ms(self, operator: Operator) -> float:
        """Latency of one operator inside a file.

        Raises:
            KeyError: it was not measured.
        """
        if operator.key not in self._content.ratios:
            raise KeyError(f"an operator is measured before it is asked for; {operator.key} was not; call fill")
        return self._content.reference_ms * self._content.ratios[operator.key]

    def latency_ms(self, operators: Iterable[Operator]) -> float:
        """Sum over operators, without the fixed cost of a run.

        Raises:
            KeyError: one was not measured.
        """
        return math.fsum(self.operator_ms(operator) for operator in operators)

    def features(self, operators: Iterable[Operator]) -> Features:
        """What a correction weighs.

        Raises:
            KeyError: an operator was not measured.
        """
        listed = list(operators)
        layers = [o for o in listed if o.weight]
        return Features(
            float_layers_ms=self.latency_ms(o for o in layers if o.arithmetic == FLOAT32),
            integer_layers_ms=self.latency_ms(o for o in layers if o.arithmetic != FLOAT32),
            others_ms=self.latency_ms(o for o in listed if not o.weight),
            run_ms=self.run_ms,
        )


def machine_digest(threads: int) -> str:
    """Names what the times depend on: processor, runtime and threads."""
    facts = [
        _FORMAT,
        platform.system(),
        platform.machine(),
        processor_model(),
        instruction_sets(),
        ort.__version__,
        threads,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _read(path: Path) -> _Content:
    """A file that is missing or damaged holds nothing: it is measured again."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        content = _Content(float(raw["reference_ms"]), float(raw["run_ms"]), _numbers(raw["ratios"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Content()
    return content if math.isfinite(content.reference_ms) and content.reference_ms > 0 else _Content()


def _numbers(raw: dict[str, Any]) -> dict[str, float]:
    return {str(key): float(value) for key, value in raw.items() if math.isfinite(value) and value >= 0}


def _write(path: Path, content: _Content) -> None:
    values = {"reference_ms": content.reference_ms, "run_ms": content.run_ms, "ratios": content.ratios}
    with written_whole(path) as file:
        file.write(json.dumps(values, indent=1, sort_keys=True).encode())


# --- the correction -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Milliseconds of a file by kind, from the table."""

    float_layers_ms: float
    integer_layers_ms: float
    others_ms: float
    run_ms: float

    @property
    def total_ms(self) -> float:
        """The plain sum, the fixed cost of a run with it."""
        return math.fsum(self.vector())

    def vector(self) -> Vector:
        """(4,), in the order of the fields."""
        return np.array([self.float_layers_ms, self.integer_layers_ms, self.others_ms, self.run_ms])


@dataclass(frozen=True)
class Correction:
    """Latency of a file as a multiple of the baseline's: a weighted sum of its features.

    Attributes:
        weights: of the fields of :class:`Features`, per millisecond; none is negative.
    """

    weights: tuple[float, float, float, float]

    def ratio(self, features: Features) -> float:
        """Latency of a file / latency of the baseline."""
        return float(features.vector() @ np.array(self.weights))


def fit_correction(baseline: Features, pairs: Sequence[tuple[Features, float]]) -> Correction:
    """The correction under which a run's measured files come out right.

    Without pairs it is the plain sum over the baseline's plain sum. A few pairs settle the common scale; the more
    there are, the freer each kind of operator is from it (ridge regression towards the scaled plain sum, the
    relative errors of the ratios being what is squared).

    Args:
        baseline: features of the baseline's file.
        pairs: features of a measured file, and its latency ratio to the baseline in one sitting.

    Raises:
        ValueError: a ratio or the baseline's sum is not positive.
    """
    if baseline.total_ms <= 0 or any(ratio <= 0 for _, ratio in pairs):
        raise ValueError("latencies are positive; the baseline's or a ratio is not; measure them again")
    prior = np.full(4, 1 / baseline.total_ms)
    if not pairs:
        return Correction(_four(prior))
    vectors = np.array([features.vector() for features, _ in pairs])
    ratios = np.array([ratio for _, ratio in pairs])
    prior *= np.exp(np.median(np.log(ratios / (vectors @ prior))))
    return Correction(_four(prior * _relative_weights(vectors * prior / ratios[:, None])))


def _relative_weights(shares: Vector) -> Vector:
    """Non-negative weights (k,) near 1 under which the rows of shares [n, k] sum to about 1."""
    from scipy.optimize import nnls  # a quarter of a second, for which nobody waits who fits nothing

    pull = np.eye(shares.shape[1]) * _TYPICAL_ERROR / _TRUST
    design = np.concatenate([shares, pull])
    target = np.concatenate([np.ones(len(shares)), pull.sum(axis=1)])
    return np.asarray(nnls(design, target)[0], dtype=np.float64)


def _four(values: Vector) -> tuple[float, float, float, float]:
    first, second, third, fourth = (float(value) for value in values)
    return first, second, third, fourth
