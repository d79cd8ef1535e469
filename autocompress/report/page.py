"""The report: one HTML file that works without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autocompress.candidate import Candidate, Measurement, State
from autocompress.config import StudyConfig
from autocompress.report import figures, formats
from autocompress.report.accuracy_view import accuracy_view, draw_accuracy_view
from autocompress.report.estimates import estimate_check
from autocompress.report.frame import candidates_frame, front_records, plan_summary
from autocompress.report.importance import LEAST_TRIALS, SHOWN, draw_importance, importance
from autocompress.report.table import origin_text
from autocompress.report.verdict import CLAIM_DROP_POINTS, claimed, decision_uses, finding, verdict
from autocompress.whole_file import written_whole

_FILTERS: tuple[Callable[..., str], ...] = (
    formats.percent,
    formats.points,
    formats.kilobytes,
    formats.milliseconds,
    formats.times,
    formats.duration,
    origin_text,
)
_ANALYSIS_LABELS = {
    "runs": "removable blocks, least missed first",
    "groups": "prunable channel groups",
    "layers": "layers with a precision",
}


class Reason(NamedTuple):
    """Why trials ended early: the kind, the trials, and each message with its count, most frequent first."""

    kind: str
    trials: list[int]
    messages: list[tuple[str, int]]


class Fact(NamedTuple):
    """A line of the environment or the analysis; ``details`` is a table of names and texts."""

    label: str
    value: str
    details: dict[str, str]


class Member(NamedTuple):
    """A front member with what its plan decided."""

    record: dict[str, Any]
    candidate: Candidate
    summary: str
    layers: Markup


def write_report(
    path: Path,
    *,
    config: StudyConfig,
    baseline: Measurement,
    candidates: Sequence[Candidate],
    facts: Mapping[str, Any],
    study: optuna.Study | None = None,
) -> None:
    """Write the report of a run to ``path``, whole or not at all.

    Args:
        path: the HTML file.
        config: the resolved study.
        baseline: figures of the uncompressed file.
        candidates: the records of all trials.
        facts: labels and values of the environment, shown as they come. Two entries are special: ``analysis``
            (an :class:`~autocompress.analysis.Analysis` as JSON) and ``run_folder``, which the export
            commands name; without it they name ``runs/<study name>``.
        study: the Optuna study, for parameter importance.
    """
    page = render(config, baseline, candidates, facts, study)
    with written_whole(path) as file:
        file.write(page.encode())


def render(
    config: StudyConfig,
    baseline: Measurement,
    candidates: Sequence[Candidate],
    facts: Mapping[str, Any],
    study: optuna.Study | None = None,
) -> str:
    """The report as HTML text."""
    frame = candidates_frame(candidates, baseline, config.objective)
    records = front_records(frame)
    return _template().render(
        config=config,
        baseline=baseline,
        run_folder=facts.get("run_folder", f"runs/{config.study.name}"),
        verdict=verdict(records),
        pick=claimed(records),
        claim_drop=CLAIM_DROP_POINTS,
        best_h=_best_h(records) if config.study.mode == "scalar" else None,
        counts=Counter(candidate.state.value for candidate in candidates),
        infeasible=int(((frame["state"] == State.COMPLETE.value) & ~frame["feasible"]).sum()),
        noisy=int(frame["noisy"].sum()),
        timed=int(frame["latency_ratio"].notna().sum()),
        estimates=estimate_check(candidates),
        members=_members(records, candidates),
        decisions=[(use, finding(use)) for use in decision_uses(candidates)],
        failures=reasons(candidates, State.FAILED),
        stopped=reasons(candidates, State.OVER_LIMIT),
        seconds=max((candidate.finished_s for candidate in candidates), default=0.0),
        environment=environment_facts(facts),
        analysis=analysis_facts(facts.get("analysis", {})),
        least_trials=LEAST_TRIALS,
        shown=SHOWN,
        plotly_js=Markup(get_plotlyjs()),
        **_views(frame, baseline, config),
        **_figures(candidates, study),
    )


def reasons(candidates: Sequence[Candidate], state: State) -> list[Reason]:
    """Reasons of the candidates in ``state`` by kind, the most frequent first."""
    kinds: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.state is state:
            kinds.setdefault(_kind(candidate), []).append(candidate)
    found = [
        Reason(kind, [c.trial for c in members], Counter(map(_message, members)).most_common())
        for kind, members in kinds.items()
    ]
    return sorted(found, key=lambda reason: -len(reason.trials))


def environment_facts(facts: Mapping[str, Any]) -> list[Fact]:
    """The lines on the machine, the versions and the settings."""
    return [_fact(label, value) for label, value in facts.items() if label not in ("analysis", "run_folder")]


def analysis_facts(analysis: Mapping[str, Any]) -> list[Fact]:
    """The lines on what was found in the base; lists are counted, mappings of reasons are told in full."""
    return [_analysis_fact(label, value) for label, value in analysis.items()]


def _analysis_fact(label: str, value: Any) -> Fact:
    text = _ANALYSIS_LABELS.get(label, label.replace("_", " "))
    if label == "runs":
        blocks = {run["name"]: ", ".join(run["blocks"]) for run in value}
        return Fact(text, str(sum(len(run["blocks"]) for run in value)), blocks)
    if label == "groups":
        kinds = {group["name"]: (group.get("inner") or {}).get("kind", "channels") for group in value}
        units = {"mlp": "hidden units"}
        sizes = {g["name"]: f"{g['channels']} {units.get(kinds[g['name']], kinds[g['name']])}" for g in value}
        return Fact(text, str(len(value)), sizes)
    if label == "layers":
        return Fact(text, str(len(value)), {layer["name"]: layer["kind"] for layer in value})
    if isinstance(value, list | tuple):
        return Fact(text, str(len(value)), {})
    return _fact(text, value)


def _fact(label: str, value: Any) -> Fact:
    text = label.replace("_", " ")
    if isinstance(value, Mapping):
        return Fact(text, str(len(value)), {str(name): _plain(detail) for name, detail in value.items()})
    return Fact(text, _plain(value), {})


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _kind(candidate: Candidate) -> str:
    broken = [limit for limit, amount in candidate.violations.items() if amount > 0]
    if candidate.state is State.OVER_LIMIT and broken:
        return ", ".join(broken)
    return candidate.reason.partition(":")[0].strip() or "unknown"


def _message(candidate: Candidate) -> str:
    kind, _, message = candidate.reason.partition(":")
    return message.strip() or kind


def _best_h(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return max(records, key=lambda record: float(record["h"]), default=None)


def _members(records: Sequence[dict[str, Any]], candidates: Sequence[Candidate]) -> list[Member]:
    by_trial = {candidate.trial: candidate for candidate in candidates}
    members = []
    for record in records:
        plan = by_trial[record["trial"]].plan
        layers = _html(figures.draw_layers(figures.layer_rows(plan)), f"layers-{record['trial']}")
        members.append(Member(record, by_trial[record["trial"]], plan_summary(plan), layers))
    return members


def _views(frame: pd.DataFrame, baseline: Measurement, config: StudyConfig) -> dict[str, Any]:
    latency = accuracy_view(frame, baseline, config.limits, "latency")
    size = accuracy_view(frame, baseline, config.limits, "size")
    return {
        "latency_view": _html(draw_accuracy_view(latency), "accuracy-latency"),
        "size_view": _html(draw_accuracy_view(size), "accuracy-size"),
        "below": latency.below,
    }


def _figures(candidates: Sequence[Candidate], study: optuna.Study | None) -> dict[str, Any]:
    curve = figures.hypervolume_curve(candidates)
    found = importance(study, candidates)
    seconds = figures.stage_time(candidates)
    return {
        "curve": curve,
        "hypervolume_figure": _html(figures.draw_hypervolume(curve), "hypervolume"),
        "has_study": study is not None,
        "importance": found,
        "importance_figure": _html(draw_importance(found), "importance") if found else "",
        "stage_seconds": seconds,
        "stage_figure": _html(figures.draw_stage_time(seconds), "stages") if seconds else "",
    }


def _html(figure: go.Figure, name: str) -> Markup:
    # Plotly escapes <, > and / in its JSON; the figures escape the text that Plotly would read as HTML.
    config = {"displayModeBar": False, "responsive": True}
    text = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=config)
    return Markup(text)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("autocompress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in _FILTERS:
        environment.filters[function.__name__] = function
    return environment.get_template("page.html.j2")
