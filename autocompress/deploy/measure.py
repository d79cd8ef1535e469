"""Figures of an exported file. Sees files and arrays, never torch models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from autocompress.candidate import Accuracy, Measurement, Parity
from autocompress.deploy.session import open_session, predict
from autocompress.errors import TrialFailed

FLOAT_TOLERANCE = 1e-4
LEAST_AGREEMENT = 0.99

Batch = tuple[NDArray[np.float32], ...]


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


def hits(path: Path, batches: Iterable[tuple[Batch, NDArray[np.int64]]], threads: int) -> NDArray[np.bool_]:
    """Which examples the file's top-1 prediction gets right; (examples,)."""
    labels: list[NDArray[np.int64]] = []

    def inputs() -> Iterable[Batch]:
        for arrays, targets in batches:
            labels.append(targets)
            yield arrays

    logits = predict(open_session(path, threads), inputs())
    return np.asarray(logits.argmax(axis=1) == np.concatenate(labels))


def compare_hits(own: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Accuracy:
    """Accuracy of a file, paired with the baseline's on the same examples."""
    return Accuracy(
        correct=int(own.sum()),
        total=len(own),
        lost=int((baseline & ~own).sum()),
        gained=int((own & ~baseline).sum()),
    )


def check_parity(
    path: Path, inputs: list[Batch], expected: NDArray[np.float32], quantized: bool, threads: int
) -> Parity:
    """Compare the file's logits with torch's, which simulate the same grids.

    Args:
        expected: (examples, classes) logits from torch in float32.
        quantized: integer kernels round where torch does, up to the order of sums; so classes are
            compared. Float graphs are compared by value.

    Raises:
        TrialFailed: outputs that are not finite or do not vary over inputs, or figures beyond the tolerance.
    """
    if len(expected) > 1 and not (expected.std(axis=0) > 0).any():
        raise TrialFailed("parity", f"logits must vary over inputs to be compared; all {len(expected)} are equal")
    logits = predict(open_session(path, threads), inputs)
    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        raise TrialFailed("parity", "logits must be finite numbers; some of the file's or of torch's are not")
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
