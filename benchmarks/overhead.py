"""Where the wall time of a finished run went: by stage, and the overhead of a trial.

    python benchmarks/overhead.py runs/cifar10_resnet56

Training, calibrating, evaluating and timing are the work that a search exists for. The rest of a trial is
overhead: planning, building, exporting, checking parity, and what no stage accounts for (records, storage).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autocompress.candidate import Candidate, State
from autocompress.engine.run_folder import open_run, read_candidates, read_facts

WORK = ("train", "teach", "calibrate", "evaluate", "time")
BOOKKEEPING = "bookkeeping"


@dataclass(frozen=True)
class Split:
    """Seconds of one trial by stage; they add up to the trial's wall time."""

    seconds: dict[str, float]

    @property
    def wall_s(self) -> float:
        """Wall time of the trial."""
        return sum(self.seconds.values())

    @property
    def work_s(self) -> float:
        """Training, calibrating, evaluating and timing."""
        return sum(self.seconds.get(stage, 0.0) for stage in WORK)

    @property
    def overhead_s(self) -> float:
        """Everything else."""
        return self.wall_s - self.work_s


def split_of(candidate: Candidate) -> Split:
    """Stages as recorded, and the rest of the trial's wall time as bookkeeping."""
    stages = candidate.stage_seconds
    rest = candidate.finished_s - candidate.started_s - sum(stages.values())
    return Split({**stages, BOOKKEEPING: rest})


def stage_lines(splits: Sequence[Split]) -> list[str]:
    """A table: stages of work first, then the overhead, each by falling total."""
    totals: dict[str, float] = {}
    for split in splits:
        for stage, seconds in split.seconds.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    whole = sum(totals.values())
    ranked = sorted(totals, key=lambda stage: (stage not in WORK, -totals[stage]))
    lines = [f"{'stage':<12}{'kind':<10}{'total s':>10}{'share':>9}{'median s a trial':>18}"]
    for stage in ranked:
        kind = "work" if stage in WORK else "overhead"
        median = np.median([split.seconds[stage] for split in splits if stage in split.seconds])
        lines.append(f"{stage:<12}{kind:<10}{totals[stage]:>10.1f}{totals[stage] / whole:>9.1%}{median:>18.2f}")
    return lines


def overhead_lines(candidates: Sequence[Candidate]) -> list[str]:
    """Absolute overhead of a trial, of all trials and of those that were trained and measured in full."""
    groups = {
        "all trials": list(candidates),
        "measured in full": [c for c in candidates if c.state is State.COMPLETE],
    }
    lines = []
    for name, members in groups.items():
        seconds = [split_of(candidate).overhead_s for candidate in members]
        if seconds:
            low, median, high = np.quantile(seconds, [0.1, 0.5, 0.9])
            lines.append(
                f"overhead per trial, {name} ({len(seconds)}): median {median:.2f} s, "
                f"mean {np.mean(seconds):.2f} s, 80 % between {low:.2f} and {high:.2f} s"
            )
    return lines


def run_lines(candidates: Sequence[Candidate], baseline_s: float) -> list[str]:
    """Shares of the whole run. The baseline's own time is no trial's, so both ways of counting are given."""
    splits = [split_of(candidate) for candidate in candidates]
    work, trials = sum(s.work_s for s in splits), sum(s.wall_s for s in splits)
    wall = max(candidate.finished_s for candidate in candidates)
    between = wall - baseline_s - trials
    lines = [
        f"training, calibrating, evaluating and timing: {work / trials:.1%} of the {trials:.0f} s of trials",
    ]
    if between < -1.0:
        return [*lines, "trials overlap (several processes): shares of the wall time would mean nothing"]
    return [
        *lines,
        f"the run: {wall:.0f} s = baseline {baseline_s:.0f} s + trials {trials:.0f} s + between trials {between:.1f} s",
        f"share of the run without the baseline: {work / (wall - baseline_s):.1%}; "
        f"of the whole run, the baseline counted as overhead: {work / wall:.1%}",
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    run = open_run(parser.parse_args().run)
    candidates = read_candidates(run)
    if not candidates:
        parser.error(f"a run with finished trials is needed; {run.root} has none")
    lines = [
        *stage_lines([split_of(candidate) for candidate in candidates]),
        "",
        *overhead_lines(candidates),
        *run_lines(candidates, float(read_facts(run)["baseline_s"])),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
