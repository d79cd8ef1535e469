"""The member of a front that a fixed rule picks, and what it is worth.

    python benchmarks/claim.py runs/cifar10_resnet56

The rule: of the front, the fastest file whose validation drop is at most 1.0 point and that the search found
itself: descended from no plan that anyone would have tried first. Its test figures are then what they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin
from autocompress.engine.pareto import front
from autocompress.engine.run_folder import open_run, read_baseline, read_candidates
from autocompress.report.verdict import CLAIM_DROP_POINTS


def lineage(candidate: Candidate, by_trial: Mapping[int, Candidate]) -> list[Candidate]:
    """The candidate, the one whose training it continued, and so on to the first."""
    line = [candidate]
    while (parent := line[-1].parent) is not None:
        line.append(by_trial[parent])
    return line


def claim(
    candidates: Sequence[Candidate], drop_points: float
) -> tuple[Candidate, Measurement, Accuracy, Latency] | None:
    """The pick with its measurement, validation accuracy and latency; None if nobody meets the rule."""
    by_trial = {candidate.trial: candidate for candidate in candidates}
    for member in front(candidates):  # fastest first
        measured = member.measurement
        assert measured is not None and measured.validation is not None and measured.latency is not None
        found = lineage(member, by_trial)[-1].origin is not Origin.ENQUEUED
        if found and measured.validation.drop_points <= drop_points:
            return member, measured, measured.validation, measured.latency
    return None


def accuracy_line(split: str, accuracy: Accuracy) -> str:
    """Accuracy with Wilson's interval, drop with the paired one."""
    low, high = accuracy.interval()
    drop_low, drop_high = accuracy.drop_interval_points()
    return (
        f"{split}: {accuracy.fraction:.2%} [{low:.2%}, {high:.2%}], "
        f"drop {accuracy.drop_points:.2f} points [{drop_low:.2f}, {drop_high:.2f}], {accuracy.total} examples"
    )


def main() -> None:
    """Command line; status 1 if no candidate meets the rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--drop", type=float, default=CLAIM_DROP_POINTS, help="validation points")
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    candidates, baseline = read_candidates(run), read_baseline(run)
    pick = claim(candidates, arguments.drop)
    if pick is None:
        sys.exit(f"no front member found by the search is within {arguments.drop} points on validation")
    member, measured, validation, latency = pick
    line = lineage(member, {candidate.trial: candidate for candidate in candidates})
    print(f"trial {' continued from '.join(str(c.trial) for c in line)} ({line[-1].origin.value})")
    print(f"family {member.plan.architecture.family}, {member.total_steps} training steps in all")
    print(
        f"latency ratio {latency.ratio:.4f} [{latency.ratio_low:.4f}, {latency.ratio_high:.4f}]: "
        f"{1 / latency.ratio:.2f}x faster [{1 / latency.ratio_high:.2f}, {1 / latency.ratio_low:.2f}]"
        f"{', noisy' if latency.noisy else ''}; "
        f"{latency.latency_ms:.4f} ms against {latency.baseline_ms:.4f} ms"
    )
    print(
        f"size ratio {measured.size_ratio:.4f}: {1 / measured.size_ratio:.2f}x smaller; "
        f"{measured.size_bytes:,} bytes against {baseline.size_bytes:,}"
    )
    print(accuracy_line("validation", validation))
    test = measured.test
    print(accuracy_line("test", test) if test else "test: not read, because the search has not ended")


if __name__ == "__main__":
    main()
