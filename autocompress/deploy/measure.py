"""Figures of an exported file. Sees files and arrays, never torch models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from autocompress.candidate import Accuracy, Measurement, Parity, Score
from autocompress.deploy.session import open_session, predict
from autocompress.errors import TrialFailed

FLOAT_TOLERANCE = 1e-4
LEAST_AGREEMENT = 0.99
QUANTIZED_TOLERANCE = 0.03
_RESAMPLES = 500

Batch = tuple[NDArray[Any], ...]


def measure_bytes(path: Path, baseline_bytes: int | None = None) -> Measurement:
    """Digest and bytes of a file, and its bytes after zstandard (level 19): what a download of it costs.

    Args:
        baseline_bytes: bytes of the uncompressed model; None for the baseline itself.
    """
    content = path.read_bytes()
    return Measurement(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        compressed_bytes=len(zstandard.ZstdCompressor(level=19).compress(content)),
        size_ratio=len(content) / (baseline_bytes or len(content)),
    )


def outputs(path: Path, batches: Iterable[Batch], threads: int) -> NDArray[np.float32]:
    """What the file puts out for a whole split; (examples, ...)."""
    return predict(open_session(path, threads), batches)


def compare_hits(own: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Accuracy:
    """Accuracy of a file, paired with the baseline's on the same examples."""
    return Accuracy(
        correct=int(own.sum()),
        total=len(own),
        lost=int((baseline & ~own).sum()),
        gained=int((own & ~baseline).sum()),
    )


def compare_scores(
    own: NDArray[np.float32],
    baseline: NDArray[np.float32],
    metric: Callable[[NDArray[np.float32], NDArray[np.int64]], float],
) -> Score:
    """A metric of a file, paired with the baseline's on the same examples.

    Args:
        own, baseline: outputs (examples, ...).
        metric: (outputs, positions of examples) -> number; bootstrap samples repeat positions.
    """
    everyone = np.arange(len(own))
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(own), len(own)) for _ in range(_RESAMPLES)]
    mine = np.array([metric(own[rows], rows) for rows in samples])
    drops = mine - mine if own is baseline else np.array([metric(baseline[rows], rows) for rows in samples]) - mine
    value, reference = metric(own, everyone), metric(baseline, everyone)
    low, high = np.quantile(mine, [0.025, 0.975])
    drop_low, drop_high = 100.0 * np.quantile(drops, [0.025, 0.975])
    return Score(
        value=value,
        baseline=reference,
        total=len(own),
        low=min(float(low), value),
        high=max(float(high), value),
        drop_low_points=float(drop_low),
        drop_high_points=float(drop_high),
    )


def check_parity(
    path: Path,
    inputs: list[Batch],
    expected: NDArray[np.float32],
    quantized: bool,
    threads: int,
    classes: bool = True,
) -> Parity:
    """Compare the file's logits with torch's, which simulate the same grids.

    Args:
        expected: (examples, classes) logits from torch in float32.
        quantized: integer kernels round where torch does, up to the order of sums; so classes are
            compared. Float graphs are compared by value.
        classes: the outputs are logits of classes; where they are not, integers are compared by value too, at
            a tolerance that leaves room for roundings.

    Raises:
        TrialFailed: outputs that are not finite or do not vary over inputs, or figures beyond the tolerance.
    """
    if len(expected) > 1 and not (expected.std(axis=0) > 0).any():
        raise TrialFailed("parity", f"logits must vary over inputs to be compared; all {len(expected)} are equal")
    logits = predict(open_session(path, threads), inputs)
    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        raise TrialFailed("parity", "logits must be finite numbers; some of the file's or of torch's are not")
    if quantized and not classes:
        return _close_on_the_whole(logits, expected)
    if quantized:
        agreement = float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())
        if agreement < LEAST_AGREEMENT:
            raise TrialFailed(
                "parity",
                f"top-1 agreement with torch must be at least {LEAST_AGREEMENT}; it is {agreement:.4f}",
            )
        return Parity(top1_agreement=agreement, examples=len(expected))
    error = float(np.abs(logits - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not error <= FLOAT_TOLERANCE:
        raise TrialFailed(
            "parity", f"relative error against torch must be at most {FLOAT_TOLERANCE}; it is {error:.2e}"
        )
    return Parity(relative_error=error, examples=len(expected))


def _close_on_the_whole(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Parity:
    spread = float(np.sqrt(np.square(expected - expected.mean(axis=0)).mean()))
    error = float(np.sqrt(np.square(found - expected).mean())) / max(spread, 1e-12)
    if not error <= QUANTIZED_TOLERANCE:
        raise TrialFailed(
            "parity", f"the error must be at most {QUANTIZED_TOLERANCE} of the outputs' spread; it is {error:.2e}"
        )
    return Parity(relative_error=error, examples=len(expected))
