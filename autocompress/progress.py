"""How a running search looks: a live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Estimate, Measurement, Origin, State
from autocompress.config import StudyConfig
from autocompress.engine.events import Watcher
from autocompress.engine.pareto import front, hypervolume, objective_vector

MEMBERS_SHOWN = 12
ESTIMATES_A_LINE = 250
"""Plans estimated between two plain lines; a search may estimate thousands, a few each second."""


def watcher_for(console: Console, config: StudyConfig) -> LivePanel | PlainLines:
    """The live panel where there is a terminal, else plain lines."""
    return LivePanel(console, config) if console.is_terminal else PlainLines(console, config)


def baseline_lines(measurement: Measurement, analysis: Analysis) -> list[str]:
    """The baseline card, as lines."""
    assert measurement.validation is not None and measurement.latency is not None
    low, high = measurement.validation.interval()
    blocks = sum(len(run.blocks) for run in analysis.runs)
    return [
        f"validation accuracy {measurement.validation.fraction:.2%} (95 % interval {low:.2%} to {high:.2%})",
        f"{measurement.size_bytes / 1000:.1f} KB, {measurement.latency.latency_ms:.3g} ms",
        f"{analysis.parameters:,} parameters; {len(analysis.layers)} layers, {len(analysis.groups)} prunable groups, "
        f"{blocks} removable blocks" + (f"; {len(analysis.left_out)} left out" if analysis.left_out else ""),
    ]


def figures(measurement: Measurement) -> str:
    """Drop, size and speed of a candidate on one line."""
    assert measurement.validation is not None and measurement.latency is not None
    noisy = " (noisy)" if measurement.latency.noisy else ""
    return (
        f"{measurement.validation.fraction:.2%} (drop {measurement.validation.drop_points:+.2f}), "
        f"{1 / measurement.size_ratio:.1f}x smaller, {1 / measurement.latency.ratio:.1f}x faster{noisy}"
    )


def expectation(estimate: Estimate) -> str:
    """What is expected of a plan that was not trained, on one line."""
    # without a drop the tables alone say that a limit is broken
    drop = "beyond a limit" if estimate.drop_points is None else f"drop about {estimate.drop_points:.1f}"
    return f"{drop}, {1 / estimate.size_ratio:.1f}x smaller, {1 / estimate.latency_ratio:.1f}x faster"


def outcome(candidate: Candidate) -> str:
    """How a trial ended, on one line."""
    if candidate.state is State.ESTIMATED:
        return "estimated" + (f": {expectation(candidate.estimate)}" if candidate.estimate else "")
    if candidate.state is State.COMPLETE and candidate.measurement is not None:
        beyond = "" if candidate.feasible else ", beyond a limit"
        return figures(candidate.measurement) + beyond
    verb = "stopped at" if candidate.state is State.OVER_LIMIT else "failed:"
    return f"{verb} {candidate.reason}"


def front_volume(candidates: Sequence[Candidate]) -> float:
    """Hypervolume of the front so far."""
    vectors = [objective_vector(c.measurement) for c in front(candidates) if c.measurement is not None]
    return hypervolume(vectors) if vectors else 0.0


class _Totals:
    """Trials done and time left, in words."""

    def __init__(self, config: StudyConfig) -> None:
        self._study = config.study

    def text(self, candidates: Sequence[Candidate], progress: float) -> str:
        """For example ``12/40 trials, about 3:20 left``, or ``312 plans estimated, 24 trained and measured, ...``.

        What was only estimated does not count towards the trials of the study.
        """
        estimated = sum(c.state is State.ESTIMATED for c in candidates)
        total, counted = self._study.trials, len(candidates) - estimated
        done = f"{counted}" + (f"/{total}" if total else "") + " trials"
        if estimated:
            complete = sum(c.state is State.COMPLETE for c in candidates)
            of_total = f" ({done})" if total else ""
            done = f"{estimated} plans estimated, {complete} trained and measured{of_total}"
        used = max((c.finished_s for c in candidates), default=0.0)
        left = used / progress - used if progress > 0 else 0.0
        return f"{done}, about {int(left) // 60}:{int(left) % 60:02d} left"


class PlainLines:
    """One line an event: for logs and pipes. Plans that are only estimated are counted, not listed."""

    def __init__(self, console: Console, config: StudyConfig) -> None:
        self._console, self._totals = console, _Totals(config)
        self._members: set[int] = set()
        self._estimates = 0
        self._may_only_estimate = {Origin.SAMPLED, Origin.MUTATED} if config.study.engine == "ladder" else set[Origin]()
        self._held = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A step of the preparation."""
        self._line(text)

    def baseline(self, measurement: Measurement, analysis: Analysis) -> None:
        """The baseline card."""
        self._line("baseline: " + "; ".join(baseline_lines(measurement, analysis)))

    def started(self, trial: int, origin: Origin, what: str) -> None:
        """A trial begins; the line waits where the trial may end as one of thousands of estimates."""
        line = f"trial {trial} ({origin.value}): {what}"
        self._held = line if origin in self._may_only_estimate else ""
        if not self._held:
            self._line(line)

    def finished(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        """A trial ended."""
        if candidate.state is State.ESTIMATED:
            self._estimated(candidate, candidates, progress)
            return
        if self._held:
            self._line(self._held)
        self._line(f"trial {candidate.trial}: {outcome(candidate)}")
        members = {c.trial for c in front(candidates)}
        for number in sorted(members - self._members):
            self._line(f"new member of the front: trial {number}")
        self._members = members
        self._line(
            f"{self._totals.text(candidates, progress)}; hypervolume {front_volume(candidates):.3f}; front {len(members)}"
        )

    def _estimated(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        """A line for the first estimate of all, then one for every so many; the front stays as it is."""
        if self._estimates % ESTIMATES_A_LINE == 0:
            self._line(f"{self._totals.text(candidates, progress)}; trial {candidate.trial} {outcome(candidate)}")
        self._estimates += 1
        self._held = ""


class LivePanel:
    """Baseline card, progress bar, current trial, front and hypervolume, redrawn in place."""

    def __init__(self, console: Console, config: StudyConfig) -> None:
        self._totals = _Totals(config)
        self._card: list[str] = []
        self._candidates: Sequence[Candidate] = ()
        self._members: list[Candidate] = []
        self._volume = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("preparing", total=1.0)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)
        self._name = config.study.name

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """A step of the preparation."""
        self._bar.update(self._task, description=text)

    def baseline(self, measurement: Measurement, analysis: Analysis) -> None:
        """The baseline card."""
        self._card = baseline_lines(measurement, analysis)

    def started(self, trial: int, origin: Origin, what: str) -> None:
        """A trial begins."""
        self._bar.update(self._task, description=f"trial {trial} ({origin.value}): {what[:60]}")

    def finished(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        """A trial ended; a new member of the front is printed above the panel."""
        self._candidates = candidates
        self._bar.update(self._task, completed=progress)
        if candidate.state is State.ESTIMATED:  # changes no front, and there are thousands
            return
        before = {c.trial for c in self._members}
        # kept, because the panel is drawn several times a second
        self._members, self._volume = front(candidates), front_volume(candidates)
        if candidate.trial in {c.trial for c in self._members} - before and candidate.measurement is not None:
            stamp = time.strftime("%H:%M:%S")
            self._live.console.print(
                f"{stamp} new member of the front: trial {candidate.trial}, {figures(candidate.measurement)}",
                highlight=False,
            )

    def _render(self) -> Group:
        parts: list[Panel | Progress | Table | str] = []
        if self._card:
            parts.append(Panel("\n".join(self._card), title=f"{self._name}: baseline", expand=False))
        if self._candidates:
            parts.append(self._front_table())
            progress = self._bar.tasks[0].completed
            failed = sum(c.state is State.FAILED for c in self._candidates)
            parts.append(
                f"{self._totals.text(self._candidates, progress)}; hypervolume {self._volume:.3f}"
                + (f"; {failed} failed" if failed else "")
            )
        return Group(*parts, self._bar)

    def _front_table(self) -> Table:
        members = self._members
        table = Table(title=f"front: {len(members)} members", title_justify="left")
        for heading in ("trial", "origin", "accuracy", "drop", "KB", "smaller", "faster"):
            table.add_column(heading, justify="left" if heading == "origin" else "right")
        for member in members[:MEMBERS_SHOWN]:
            m = member.measurement
            assert m is not None and m.validation is not None and m.latency is not None
            table.add_row(
                str(member.trial),
                member.origin.value,
                f"{m.validation.fraction:.2%}",
                f"{m.validation.drop_points:+.2f}",
                f"{m.size_bytes / 1000:.1f}",
                f"{1 / m.size_ratio:.1f}x",
                f"{1 / m.latency.ratio:.1f}x",
            )
        return table


def _is_watcher(panel: LivePanel, lines: PlainLines) -> tuple[Watcher, Watcher]:
    """Both follow the protocol; checked by the type checker, never called."""
    return panel, lines
