"""Latency of a file against the baseline's, in one sitting, in a process without torch.

``python -m autocompress.deploy.timing`` reads a request as JSON from stdin and writes the figures as JSON
to stdout; :func:`time_latency` starts it. Both files are warmed up; then blocks of candidate and baseline
runs of some milliseconds alternate (AB BA AB ...), and the ratio is taken within pairs of blocks.

What shares the machine does not slow two files down alike: one that fits into the core's own cache may take as
long as ever while a large one takes a third longer, or the other way round. So pairs are not enough, and what
counts are the quiet pairs, those in which both files ran fastest (interference only ever adds time; Chen and
Revels 2016). A sitting goes on while the baseline takes longer in them than it usually does.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autocompress.deploy.session import open_session
from autocompress.errors import TrialFailed, first_line

if TYPE_CHECKING:  # pydantic costs the timing process more than the timing of a small model
    from autocompress.candidate import Latency

TIMEOUT_S = 120.0
QUIET_TOLERANCE = 0.08
"""By how much longer than usual a baseline may take while the machine passes as quiet."""
_LONGEST = 3
_WARM_UP_S = 0.15
_WARM_UP_RUNS = 5
_BLOCK_S = 0.008
_LEAST_PAIRS = 6
_QUIET_SHARE = 0.25
_MOST_QUIET_PAIRS = 24
_RESAMPLES = 1000

Run = Callable[[], object]
Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sitting:
    """Run times in seconds of all pairs of blocks: [pairs, runs per block] for candidate and baseline."""

    candidate: Times
    baseline: Times

    def quiet(self) -> Sitting:
        """The fastest quarter of the pairs, at least 6 and at most 24, by the product of both blocks' medians.

        The product, because to choose by either file alone would favour it in the ratio. Files that take 100 ms have
        six pairs or few more, of which none is left out.
        """
        together = np.median(self.candidate, axis=1) * np.median(self.baseline, axis=1)
        count = max(_LEAST_PAIRS, min(_MOST_QUIET_PAIRS, int(_QUIET_SHARE * len(together))))
        fastest = np.argsort(together, kind="stable")[:count]
        return Sitting(self.candidate[fastest], self.baseline[fastest])

    def figures(self) -> dict[str, float]:
        """Fields of :class:`autocompress.candidate.Latency` but for ``noisy``: of the quiet pairs, p90 of all."""
        quiet = self.quiet()
        ratios = np.median(quiet.candidate, axis=1) / np.median(quiet.baseline, axis=1)
        low, high = bootstrap_interval(ratios)
        return {
            "latency_ms": 1e3 * float(np.median(quiet.candidate)),
            "p90_ms": 1e3 * float(np.quantile(self.candidate, 0.9)),
            "baseline_ms": 1e3 * float(np.median(quiet.baseline)),
            "ratio": float(np.median(ratios)),
            "ratio_low": low,
            "ratio_high": high,
        }


@dataclass(frozen=True)
class InputSpec:
    """One input of both files; floats are drawn from a normal distribution, all else is 1: no mask hides anything."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def draw(self, rng: np.random.Generator) -> npt.NDArray[Any]:
        """An array of this shape and dtype."""
        if np.issubdtype(np.dtype(self.dtype), np.floating):
            return rng.standard_normal(self.shape).astype(self.dtype)
        return np.ones(self.shape, self.dtype)


def bootstrap_interval(values: Times) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the median of values [n] (Efron 1979); contains the median."""
    rng = np.random.default_rng(0)
    samples = np.median(rng.choice(values, (_RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    median = np.median(values)
    return float(min(low, median)), float(max(high, median))


def time_latency(
    candidate: Path,
    baseline: Path,
    inputs: Sequence[tuple[str, tuple[int, ...], str]],
    threads: int,
    usual_ms: float | None = None,
    seconds: float = 1.5,
) -> Latency:
    """Time a file against the baseline while nothing trains; waits for the machine.

    Args:
        candidate: an ONNX file.
        baseline: an ONNX file with the same inputs.
        inputs: (name, shape, numpy dtype) of each input.
        threads: threads of either session.
        usual_ms: what the baseline takes on this machine while it is quiet, by earlier sittings; None if there were
            none.
        seconds: length of a sitting on a quiet machine; on another, or without ``usual_ms``, it is three times that.

    Raises:
        TrialFailed: kind ``timing``; a file does not load or run, or timing takes too long.
    """
    from autocompress.candidate import Latency
    from autocompress.deploy import machine_lock

    request = {
        "candidate": str(candidate.absolute()),
        "baseline": str(baseline.absolute()),
        "inputs": [asdict(InputSpec(*entry)) for entry in inputs],
        "threads": threads,
        "usual_ms": usual_ms,
        "seconds": seconds,
    }
    with machine_lock.timing():
        return Latency.model_validate_json(_run_timing_process(json.dumps(request), threads))


def _run_timing_process(request: str, threads: int) -> str:
    command = [sys.executable, "-m", "autocompress.deploy.timing"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TrialFailed("timing", f"timing must end within {TIMEOUT_S:.0f} s; it did not") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TrialFailed("timing", f"the file could not be timed: {lines[-1]}")
    return done.stdout


def is_slowed(baseline_ms: float, usual_ms: float) -> bool:
    """Whether the baseline took so much longer than usual that the machine was not quiet."""
    return baseline_ms > (1 + QUIET_TOLERANCE) * usual_ms


def measure(request: dict[str, Any]) -> dict[str, float | bool]:
    """Figures of a sitting; noisy if the baseline was slowed down to its end."""
    rng = np.random.default_rng(0)
    specs = [InputSpec(entry["name"], tuple(entry["shape"]), entry["dtype"]) for entry in request["inputs"]]
    feeds = {spec.name: spec.draw(rng) for spec in specs}
    candidate = _runner(Path(request["candidate"]), request["threads"], feeds)
    baseline = _runner(Path(request["baseline"]), request["threads"], feeds)
    usual_ms = request["usual_ms"]
    figures: dict[str, float] = {}
    for sitting in sit(candidate, baseline, request["seconds"]):
        figures = sitting.figures()
        if usual_ms is not None and not is_slowed(figures["baseline_ms"], usual_ms):
            break
    return {**figures, "noisy": usual_ms is not None and is_slowed(figures["baseline_ms"], usual_ms)}


def _runner(path: Path, threads: int, feeds: dict[str, npt.NDArray[Any]]) -> Run:
    session = open_session(path, threads)
    return lambda: session.run(None, feeds)


def sit(candidate: Run, baseline: Run, seconds: float) -> Iterator[Sitting]:
    """Warm both up, then time blocks in turn; all that was timed so far after each of three times ``seconds``.

    At least six pairs.
    """
    runs = (candidate, baseline)
    counts = [max(1, round(_BLOCK_S / _warm_up(run))) for run in runs]
    blocks: tuple[list[Times], list[Times]] = ([], [])
    for _ in range(_LONGEST):
        gc.disable()
        try:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(blocks[0]) < _LEAST_PAIRS:
                order = (0, 1) if len(blocks[0]) % 2 == 0 else (1, 0)
                for which in order:
                    blocks[which].append(_time_block(runs[which], counts[which]))
        finally:
            gc.enable()
        yield Sitting(np.array(blocks[0]), np.array(blocks[1]))


def _warm_up(run: Run) -> float:
    """Seconds of one warm run."""
    times: list[float] = []
    end = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < end or len(times) < _WARM_UP_RUNS:
        times.append(float(_time_block(run, 1)[0]))
    return float(np.median(times[len(times) // 2 :]))


def _time_block(run: Run, count: int) -> Times:
    """Seconds of each of ``count`` runs."""
    stamps = [time.perf_counter()]
    for _ in range(count):
        run()
        stamps.append(time.perf_counter())
    return np.diff(stamps)


def main() -> None:
    """Entry point of the timing process."""
    try:
        figures = measure(json.load(sys.stdin))
    except Exception as error:
        sys.exit(first_line(error))
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
