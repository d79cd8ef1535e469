"""The page holds what it must, works without a network, and trusts nothing that comes from files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_up_run import FACTS, HOSTILE, Run
from plotly.offline import get_plotlyjs

from autocompress.candidate import Candidate, Origin, State
from autocompress.plan import Plan
from autocompress.report.frame import candidates_frame, front_records
from autocompress.report.page import analysis_facts, environment_facts, reasons, render, write_report


def rendered(run: Run, **changes: object) -> str:
    """The page without Plotly's script, which is checked to be there once."""
    arguments = {
        "config": run.config,
        "baseline": run.baseline,
        "candidates": run.candidates,
        "facts": run.facts,
        "study": run.study,
    }
    page = render(**(arguments | changes))  # type: ignore[arg-type]
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return rendered(run)


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"@import|url\(|<link|<iframe|<img", page)
    assert "plot.ly" not in page


def test_every_front_member_is_there_with_both_splits(run: Run, page: str) -> None:
    records = front_records(candidates_frame(run.candidates, run.baseline, run.config.objective))
    assert len(records) > 5
    for record in records:
        assert f'id="trial-{record["trial"]}"' in page and f'id="figure-layers-{record["trial"]}"' in page
        assert f"{100 * record['test_accuracy']:.2f} %" in page
        assert f"--trial {record['trial']} -o DIR" in page


def test_every_section_is_there(page: str) -> None:
    for heading in (
        "Baseline", "Accuracy and latency", "Accuracy and size", "The front",
        "What each kind of decision brought", "Layers of each front member",
        "Hypervolume over time", "Parameter importance",
        "Trials that did not make it", "Where the time went", "How it was measured", "What the analysis",
    ):  # fmt: skip
        assert f"<h2>{heading}" in page
    assert "reference\n    point (3, 0, 0)" in page
    assert "1 of 57" in page  # noisy sittings of those timed


def test_hostile_text_is_escaped(run: Run, page: str) -> None:
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    named = [c.model_copy(update={"name": HOSTILE}) for c in run.candidates]
    facts = {"cpu": HOSTILE, HOSTILE: 1, "analysis": {"left_out": {HOSTILE: HOSTILE}}, "run_folder": HOSTILE}
    assert HOSTILE not in rendered(run, candidates=named, facts=facts)
    plan = Plan.model_validate(
        {
            "architecture": {"choices": {HOSTILE: HOSTILE}, "dropped_blocks": [HOSTILE]},
            "pruning": {"ratios": {HOSTILE: 0.5}},
            "quantization": {"precisions": {HOSTILE: "w4a8"}},
        }
    )
    hostile = [c.model_copy(update={"plan": plan, "stage_seconds": {HOSTILE: 1.0}}) for c in run.candidates]
    assert HOSTILE not in rendered(run, candidates=hostile, study=None)


def test_without_a_front(run: Run) -> None:
    failed = [c for c in run.candidates if c.state is not State.COMPLETE]
    page = rendered(run, candidates=failed)
    assert "There is no front" in page and "nothing to choose from" in page
    assert "There is no front" in rendered(run, candidates=[], facts={})


def test_without_test_figures(run: Run) -> None:
    untested = [
        c.model_copy(update={"measurement": c.measurement and c.measurement.model_copy(update={"test": None})})
        for c in run.candidates
    ]
    page = rendered(run, candidates=untested, baseline=run.baseline.model_copy(update={"test": None}))
    assert "Its test figures were not read." in page


def test_without_a_study_or_with_few_trials(run: Run) -> None:
    assert "storage was not at hand" in rendered(run, study=None)
    assert "it takes at least 20 trials" in rendered(run, candidates=run.candidates[:8])


def test_scalar_studies_name_the_highest_h(run: Run) -> None:
    study = run.config.study.model_copy(update={"mode": "scalar"})
    page = rendered(run, config=run.config.model_copy(update={"study": study}))
    records = front_records(candidates_frame(run.candidates, run.baseline, run.config.objective))
    best = max(records, key=lambda record: float(record["h"]))
    assert f"Highest h: trial {best['trial']} with {best['h']:.4f}" in page


def test_reasons_come_most_frequent_first() -> None:
    texts = ["parity: 97 %", "export: no", "parity: 96 %", "parity: 97 %", ""]
    failed = [
        Candidate(trial=n, origin=Origin.SAMPLED, state=State.FAILED, reason=text, plan=Plan())
        for n, text in enumerate(texts)
    ]
    found = reasons(failed, State.FAILED)
    assert [(reason.kind, reason.trials) for reason in found] == [
        ("parity", [0, 2, 3]),
        ("export", [1]),
        ("unknown", [4]),
    ]
    assert found[0].messages == [("97 %", 2), ("96 %", 1)]


def test_limits_are_counted_by_what_was_broken(run: Run) -> None:
    (found,) = reasons(run.candidates, State.OVER_LIMIT)
    assert found.kind == "max_latency_ms" and len(found.trials) == 6


def test_facts_are_lines() -> None:
    lines = {fact.label: fact for fact in environment_facts(FACTS)}
    assert lines["cpu features"].value == "avx2, avx512_vnni"
    assert lines["versions"].details["torch"] == "2.13.0"
    found = {fact.label: fact for fact in analysis_facts(FACTS["analysis"])}
    assert found["parameters"].value == "855,770"
    assert found["removable blocks, least missed first"].value == "2"
    assert found["layers with a precision"].value == "3"
    assert found["left out"].details["block layer2.0"] == "input and output shapes differ"


def test_the_file_is_written_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    arguments = {"config": run.config, "baseline": run.baseline, "candidates": run.candidates[:5]}
    with pytest.raises(AttributeError):
        write_report(path, facts=None, **arguments)  # type: ignore[arg-type]
    assert path.read_text() == "before"
    write_report(path, facts={}, **arguments)  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
