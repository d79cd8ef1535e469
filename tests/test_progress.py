"""What a search says as it goes: a line for what was trained, a count for what was only estimated."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console

from autocompress.candidate import Accuracy, Candidate, Estimate, Latency, Measurement, Origin, State
from autocompress.config import StudyConfig
from autocompress.plan import Plan
from autocompress.progress import ESTIMATES_A_LINE, LivePanel, PlainLines, outcome


def config(engine: str = "ladder", **totals: int) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "tiny", "timeout": "60m", "engine": engine, **totals},
            "model": {"source": "package.module:factory"},
            "data": {"source": "imagefolder:cifar10"},
        }
    )


def candidate(trial: int, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {"origin": Origin.MUTATED, "state": State.ESTIMATED, "plan": Plan()}
    estimate = Estimate(
        size_ratio=1 / 11.9, latency_ratio=1 / 8.1, divergence=0.1, shared_drop_points=3.0, drop_points=1.21
    )
    return Candidate(trial=trial, finished_s=float(trial), **fields | {"estimate": estimate} | changes)


def trained(trial: int) -> Candidate:
    latency = Latency(latency_ms=1, p90_ms=1, baseline_ms=4, ratio=0.25, ratio_low=0.24, ratio_high=0.26)
    measured = Measurement(
        size_bytes=10, compressed_bytes=9, size_ratio=0.1, latency=latency,
        validation=Accuracy(correct=880, total=1000, lost=10, gained=2),
    )  # fmt: skip
    return candidate(trial, origin=Origin.PROMOTED, state=State.COMPLETE, parent=0, measurement=measured)


def said(lines: PlainLines | LivePanel, console: Console, story: list[Candidate]) -> str:
    with console.capture() as capture:
        for number, each in enumerate(story, start=1):
            lines.started(each.trial, each.origin, "base, w4a8, 350 steps")
            lines.finished(each, story[:number], number / 2000)
    return capture.get()


def test_an_estimate_in_words() -> None:
    assert outcome(candidate(3)) == "estimated: drop about 1.2, 11.9x smaller, 8.1x faster"
    beyond = Estimate(size_ratio=0.5, latency_ratio=0.8)
    assert outcome(candidate(3, estimate=beyond)) == "estimated: beyond a limit, 2.0x smaller, 1.2x faster"
    assert outcome(candidate(3, estimate=None)) == "estimated"
    assert outcome(trained(4)) == "88.00% (drop +0.80), 10.0x smaller, 4.0x faster"
    failed = candidate(5, state=State.FAILED, estimate=None, reason="export: no")
    assert outcome(failed) == "failed: export: no"


def test_thousands_of_estimates_are_a_few_lines() -> None:
    console = Console(width=200)
    count = 4 * ESTIMATES_A_LINE
    text = said(PlainLines(console, config()), console, [*map(candidate, range(count)), trained(count)])
    lines = text.splitlines()
    assert len([line for line in lines if "plans estimated" in line]) == 4 + 1
    assert f"{ESTIMATES_A_LINE + 1} plans estimated, 0 trained and measured" in text
    assert lines[-1].startswith(f"{count} plans estimated, 1 trained and measured, about ")
    assert lines[-1].endswith("front 1")
    # what was trained has its lines as ever
    assert f"trial {count} (promoted): base, w4a8, 350 steps" in lines
    assert f"trial {count}: {outcome(trained(count))}" in lines
    assert f"new member of the front: trial {count}" in lines
    assert len(lines) == 4 + 4


def test_a_sampled_trial_that_was_trained_after_all_is_told_whole() -> None:
    for engine in ("ladder", "plain"):
        console = Console(width=200)
        sampled = trained(0).model_copy(update={"origin": Origin.SAMPLED, "parent": None})
        lines = said(PlainLines(console, config(engine)), console, [sampled]).splitlines()
        assert lines[0] == "trial 0 (sampled): base, w4a8, 350 steps"
        assert lines[1].startswith("trial 0: 88.00%")
        assert lines[-1].startswith("1 trials, about ")


def test_estimates_are_no_part_of_the_total() -> None:
    console = Console(width=200)
    story = [candidate(0), candidate(1), trained(2), candidate(3, state=State.FAILED, origin=Origin.PROMOTED)]
    lines = said(PlainLines(console, config(trials=40)), console, story).splitlines()
    assert lines[-1].startswith("2 plans estimated, 1 trained and measured (2/40 trials), about ")


def test_the_panel_keeps_its_front_while_plans_are_estimated() -> None:
    console = Console(width=200, force_terminal=True, no_color=True)
    panel = LivePanel(console, config())
    story = [trained(0), *(candidate(n) for n in range(1, 40))]
    text = said(panel, console, story)
    assert text.count("new member of the front") == 1
    with console.capture() as capture:
        console.print(panel._render())
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", capture.get())
    assert "39 plans estimated, 1 trained and measured" in drawn
    assert "front: 1 members" in drawn
