"""The front for the terminal."""

from __future__ import annotations

from made_up_run import Run
from rich.console import Console

from autocompress.report.frame import candidates_frame, front_records
from autocompress.report.table import front_table_text, origin_text


def printed(run: Run) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(front_table_text(candidates_frame(run.candidates, run.baseline, run.config.objective)))
    return capture.get()


def test_a_line_a_member(run: Run) -> None:
    lines = printed(run).splitlines()
    records = front_records(candidates_frame(run.candidates, run.baseline, run.config.objective))
    assert [int(line.split()[0]) for line in lines[1:]] == [record["trial"] for record in records]
    assert "1,112 KB (3.2x)" in printed(run) and "0.714 ms (2.2x)" in printed(run)
    assert "enqueued: int8" in printed(run)


def test_names_are_not_read_as_markup(run: Run) -> None:
    odd = run.candidates[1].model_copy(update={"name": "[red]x[/red]"})
    assert "[red]x[/red]" in printed(Run(run.config, run.baseline, [odd], {}))


def test_origins() -> None:
    assert origin_text({"origin": "continued", "parent": 12, "name": ""}) == "continued from 12"
    assert origin_text({"origin": "sampled", "parent": None, "name": ""}) == "sampled"
