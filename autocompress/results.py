"""What a run has found: its candidates as a table, its report, and copies of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.candidate import State
from autocompress.engine.run_folder import (
    RunFolder,
    read_analysis_content,
    read_baseline,
    read_candidates,
    read_facts,
    read_study,
    run_config,
)
from autocompress.errors import RunError
from autocompress.report.frame import candidates_frame, front_rows
from autocompress.report.selection import select_best

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The results of a run, read from its folder at each look.

    What only a report or an export needs is imported there: torch and plotly take longer than reading a run.

    Attributes:
        run: the folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    @property
    def candidates(self) -> pd.DataFrame:
        """A row for each trial; columns as :func:`autocompress.report.frame.candidates_frame` says, and ``artifact``,
        the path of the trial's file; None for a trial that has none.
        """
        frame = candidates_frame(read_candidates(self.run), read_baseline(self.run), run_config(self.run).objective)
        with_file = frame["state"] == State.COMPLETE.value
        trials = zip(frame["trial"], with_file, strict=True)
        frame["artifact"] = [str(self.run.artifact(int(number))) if has_file else None for number, has_file in trials]
        return frame

    @property
    def front(self) -> pd.DataFrame:
        """The rows of the Pareto front, fastest first."""
        return front_rows(self.candidates)

    def report(self, path: Path | str | None = None) -> Path:
        """Write the report page, one file that works offline; by default ``report.html`` in the run's folder.

        Raises:
            RunError: the folder for it does not exist, or the path is a folder.
        """
        from autocompress.report.page import write_report

        run, target = self.run, Path(path) if path is not None else self.run.report
        if not target.parent.is_dir():
            raise RunError(f"the report's folder must exist; {target.parent} does not; make it first")
        if target.is_dir():
            raise RunError(
                f"the report is one file; {target} is a folder; name a file, such as {target / 'report.html'}"
            )
        facts = read_facts(run) | {"analysis": read_analysis_content(run), "run_folder": str(run.root)}
        write_report(
            target,
            config=run_config(run),
            baseline=read_baseline(run),
            candidates=read_candidates(run),
            facts=facts,
            study=read_study(run),
        )
        return target

    def choose(self, best: str) -> int:
        """The trial that an expression such as ``max latency_speedup where val_drop_points <= 1`` picks.

        Raises:
            UserError: the expression is wrong, or no trial fits it.
        """
        return select_best(self.candidates, best)

    def export(self, output: Path | str, *, trial: int | None = None, best: str | None = None) -> Path:
        """Copy one candidate out of the run, verified, with its card.

        Args:
            output: a new folder.
            trial: number of the candidate.
            best: or an expression that :meth:`choose` understands.

        Raises:
            UserError: both or none of ``trial`` and ``best``, or a candidate that cannot be exported.
        """
        if (trial is None) == (best is None):
            raise RunError("export takes one of trial and best; got both or neither; give one")
        from autocompress.engine.delivery import export_candidate

        number = trial if trial is not None else self.choose(best or "")
        return export_candidate(self.run, number, Path(output))
