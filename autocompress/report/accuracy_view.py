"""Validation accuracy against size or latency: computed as a plain value first, drawn from it second.

Costs are drawn as ratios to the uncompressed file, because latencies in ms of two sittings do not compare;
ticks say both the factor and what it is in KB or ms on the baseline's scale.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from autocompress.candidate import Measurement, Origin, State
from autocompress.config import LimitsSection
from autocompress.report import formats
from autocompress.report.frame import front_records, front_rows
from autocompress.report.style import (
    BASELINE,
    GRID,
    INK,
    KINDS,
    LIMIT_COLOUR,
    MUTED,
    STOPPED,
    draw_vertical,
    layout,
)
from autocompress.report.verdict import claimed

Cost = Literal["size", "latency"]

# In order of preference where not all fit on an axis.
_FACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 3, 6, 12, 24, 48, 96, 1.5, 0.5, 0.75)


class Points(NamedTuple):
    """Candidates of one kind: cost ratio, validation accuracy in percent, what hovering says."""

    trials: list[int]
    cost_ratio: list[float]
    accuracy: list[float]
    hover: list[str]


class Label(NamedTuple):
    """A point with a name beside it."""

    text: str
    cost_ratio: float
    accuracy: float


class CostLimit(NamedTuple):
    """A limit on a cost, as a ratio to the baseline."""

    text: str
    cost_ratio: float


@dataclass(frozen=True)
class AccuracyView:
    """Validation accuracy against one cost.

    A point is a file. Plans that were only estimated have none and are left out: thousands of expected values
    would cover the files and read as if they had been measured.

    ``points`` has the kinds of ``KINDS``; ``stopped`` those without an accuracy; ``continued`` pairs of
    ((cost ratio, accuracy) of the parent, of the child); ``pick`` is what the report's rule chooses;
    ``accuracy_range`` (percent) is where the front is, ``below`` counts the candidates under it.
    """

    cost: Cost
    baseline: Label
    baseline_cost: float
    points: dict[str, Points]
    stopped: Points
    named: list[Label]
    pick: Label | None
    continued: list[tuple[tuple[float, float], tuple[float, float]]]
    cost_limits: list[CostLimit]
    accuracy_limit: float | None
    accuracy_range: tuple[float, float]
    below: int


def accuracy_view(frame: pd.DataFrame, baseline: Measurement, limits: LimitsSection, cost: Cost) -> AccuracyView:
    """What the accuracy-size or the accuracy-latency figure shows; ``frame`` is of ``candidates_frame``."""
    with_cost = frame[frame[f"{cost}_ratio"].notna() & (frame["state"] != State.ESTIMATED.value)]
    measured = with_cost[with_cost["val_accuracy"].notna()]
    untrained = with_cost[with_cost["val_accuracy"].isna()]
    kinds = {kind: _points(rows, cost) for kind, rows in _by_kind(measured).items()}
    accuracy = 100.0 * baseline.validation.fraction if baseline.validation else math.nan
    drop_limit = limits.max_accuracy_drop
    accuracy_limit = None if drop_limit is None else accuracy - drop_limit
    low, high = _accuracy_range(kinds, accuracy, accuracy_limit)
    return AccuracyView(
        cost=cost,
        baseline=Label(BASELINE, 1.0, accuracy),
        baseline_cost=_baseline_cost(baseline, cost),
        points=kinds,
        stopped=_points(untrained, cost),
        named=_named(measured, cost),
        pick=_pick(frame, cost),
        continued=_continued(measured, cost),
        cost_limits=_cost_limits(limits, baseline, cost),
        accuracy_limit=accuracy_limit,
        accuracy_range=(low, high),
        below=int((100.0 * measured["val_accuracy"] < low).sum()),
    )


def draw_accuracy_view(view: AccuracyView) -> go.Figure:
    """Accuracy up, cost (log) to the right: better is up and left."""
    figure = go.Figure(layout=layout(height=460))
    _draw_continued(figure, view)
    for kind, points in view.points.items():
        _draw_points(figure, kind, points, KINDS[kind])
    _draw_stopped(figure, view.stopped)
    star = {"symbol": "star", "color": INK, "size": 14}
    _draw_points(figure, BASELINE, Points([], [1.0], [view.baseline.accuracy], [BASELINE]), star)
    _draw_labels(figure, view)
    _draw_limits(figure, view)
    _cost_axis(figure, view)
    title = "validation accuracy, %"
    figure.update_yaxes(title=title, range=view.accuracy_range, gridcolor=GRID, zeroline=False)
    # Candidates without an accuracy stand on the lower edge, whatever part of the accuracies is looked at.
    edge = {"overlaying": "y", "range": [0, 1], "fixedrange": True, "visible": False}
    figure.update_layout(yaxis2=edge, hovermode="closest")
    return figure


def _by_kind(measured: pd.DataFrame) -> dict[str, pd.DataFrame]:
    complete = measured["state"] == State.COMPLETE.value
    return {
        "dominated": measured[measured["feasible"] & ~measured["on_front"]],
        "trained, over a limit": measured[complete & ~measured["feasible"]],
        "front": front_rows(measured),
    }


def _points(rows: pd.DataFrame, cost: Cost) -> Points:
    return Points(
        trials=[int(trial) for trial in rows["trial"]],
        cost_ratio=[float(ratio) for ratio in rows[f"{cost}_ratio"]],
        accuracy=[100.0 * float(accuracy) for accuracy in rows["val_accuracy"]],
        hover=[_hover(row) for row in rows.to_dict("records")],
    )


def _hover(row: dict[Any, Any]) -> str:
    name = f" · {row['name']}" if row["name"] else ""
    parent = "" if pd.isna(row["parent"]) else f" from trial {row['parent']}"
    noisy = " (noisy)" if row["noisy"] else ""
    lines = [
        f"trial {row['trial']} · {row['family']} · {row['origin']}{parent}{name}",
        f"validation {formats.percent(row['val_accuracy'])}, drop {formats.points(row['val_drop_points'])}",
        f"{formats.kilobytes(row['size_bytes'])}, {formats.times(row['size_reduction'])} smaller",
        f"{formats.milliseconds(row['latency_ms'])}, {formats.times(row['latency_speedup'])} faster{noisy}",
        *_wrapped(row["plan"]),
        *_wrapped(row["reason"]),
    ]
    return "<br>".join(html.escape(line) for line in lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=70)[:6]


def _named(measured: pd.DataFrame, cost: Cost) -> list[Label]:
    rows = measured[(measured["origin"] == Origin.ENQUEUED.value) & (measured["name"] != "")]
    return [
        Label(str(row["name"]), float(row[f"{cost}_ratio"]), 100.0 * float(row["val_accuracy"]))
        for row in rows.to_dict("records")
    ]


def _pick(frame: pd.DataFrame, cost: Cost) -> Label | None:
    pick = claimed(front_records(frame))
    if pick is None:
        return None
    gain = f"{formats.times(1.0 / pick[f'{cost}_ratio'])} {'smaller' if cost == 'size' else 'faster'}"
    return Label(f"trial {pick['trial']}: {gain}", pick[f"{cost}_ratio"], 100.0 * pick["val_accuracy"])


def _continued(measured: pd.DataFrame, cost: Cost) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    place = {
        int(row["trial"]): (float(row[f"{cost}_ratio"]), 100.0 * float(row["val_accuracy"]))
        for row in measured.to_dict("records")
    }
    # a promoted trial has a parent too, which was never measured
    children = measured[measured["parent"].notna() & (measured["origin"] == Origin.CONTINUED.value)]
    pairs = [(int(row["parent"]), int(row["trial"])) for row in children.to_dict("records")]
    return [(place[parent], place[child]) for parent, child in pairs if parent in place]


def _accuracy_range(kinds: dict[str, Points], baseline: float, limit: float | None) -> tuple[float, float]:
    """Percent: front, baseline and limit with room below; not what failed to learn."""
    everything = [accuracy for points in kinds.values() for accuracy in points.accuracy]
    known = [value for value in (baseline, limit) if value is not None and not math.isnan(value)]
    told = [*(kinds["front"].accuracy or everything), *known] or [0.0, 100.0]
    span = max(max(told) - min(told), 1.0)
    return min(told) - 0.35 * span, max([*told, *everything]) + 0.15 * span


def _baseline_cost(baseline: Measurement, cost: Cost) -> float:
    if cost == "size":
        return float(baseline.size_bytes)
    return baseline.latency.latency_ms if baseline.latency else math.nan


def _cost_limits(limits: LimitsSection, baseline: Measurement, cost: Cost) -> list[CostLimit]:
    absolute = limits.max_size_bytes if cost == "size" else limits.max_latency_ms
    speed_ratio = None if limits.min_speedup is None else 1.0 / limits.min_speedup
    relative = limits.max_size_ratio if cost == "size" else speed_ratio
    found = []
    if absolute is not None:
        ratio = absolute / _baseline_cost(baseline, cost)
        found.append(CostLimit(f"limit {_in_units(absolute, cost)}", ratio))
    if relative is not None:
        found.append(CostLimit(f"limit {formats.times(1.0 / relative)}", relative))
    return found


def _draw_points(figure: go.Figure, kind: str, points: Points, marker: dict[str, Any]) -> None:
    count = f" ({len(points.trials)})" if points.trials else ""
    if points.cost_ratio:
        figure.add_scatter(
            x=points.cost_ratio, y=points.accuracy, mode="markers", marker=marker, name=f"{kind}{count}",
            hovertext=points.hover, hoverinfo="text", cliponaxis=True,
        )  # fmt: skip


def _draw_stopped(figure: go.Figure, stopped: Points) -> None:
    if not stopped.trials:
        return
    marker = {"symbol": "line-ns-open", "color": LIMIT_COLOUR, "size": 14, "line": {"width": 2}}
    figure.add_scatter(
        x=stopped.cost_ratio, y=[0.02] * len(stopped.trials), yaxis="y2", mode="markers", marker=marker,
        name=f"{STOPPED} ({len(stopped.trials)})", hovertext=stopped.hover, hoverinfo="text",
    )  # fmt: skip


def _draw_continued(figure: go.Figure, view: AccuracyView) -> None:
    x = [value for parent, child in view.continued for value in (parent[0], child[0], None)]
    y = [value for parent, child in view.continued for value in (parent[1], child[1], None)]
    if x:
        line = {"color": KINDS["front"]["color"], "width": 1, "dash": "dot"}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name="continued training", hoverinfo="skip")


def _draw_labels(figure: go.Figure, view: AccuracyView) -> None:
    for label in view.named:
        if view.accuracy_range[0] <= label.accuracy <= view.accuracy_range[1]:
            # Obvious plans often share a cost: the most accurate of them is named above, the others below.
            beside = [other.accuracy for other in view.named if 0.75 < other.cost_ratio / label.cost_ratio < 1.33]
            # Towards the right edge a name would leave the picture.
            across, down = -24 if label.cost_ratio > 0.6 else 24, -22 if label.accuracy >= max(beside) else 22
            _draw_label(figure, label, across, down)
    if view.pick is not None:
        _draw_label(figure, view.pick, -24, -26, weight="bold")


def _draw_label(figure: go.Figure, label: Label, across: int, down: int, weight: str = "normal") -> None:
    figure.add_annotation(
        x=math.log10(label.cost_ratio), y=label.accuracy, text=html.escape(label.text), ax=across, ay=down,
        xanchor="right" if across < 0 else "left", arrowwidth=1, arrowcolor=MUTED, arrowhead=0, standoff=6,
        font={"size": 12, "color": INK, "weight": weight},
    )  # fmt: skip


def _draw_limits(figure: go.Figure, view: AccuracyView) -> None:
    for limit in view.cost_limits:
        draw_vertical(figure, limit.cost_ratio, limit.text, annotate_at=math.log10(limit.cost_ratio))
    if view.accuracy_limit is not None:
        line = {"color": KINDS["trained, over a limit"]["color"], "width": 1, "dash": "dash"}
        y = view.accuracy_limit
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=y, y1=y, line=line)
        figure.add_annotation(
            xref="paper", x=1, y=y, text="limit of the drop", showarrow=False, xanchor="right",
            yanchor="bottom", font={"size": 11, "color": line["color"]},
        )  # fmt: skip


def _cost_axis(figure: go.Figure, view: AccuracyView) -> None:
    shown = [ratio for points in (*view.points.values(), view.stopped) for ratio in points.cost_ratio]
    low, high = min([*shown, 1.0]), max([*shown, 1.0]) * 1.12
    low /= 1.12 * (high / low) ** 0.15  # room for the name of the pick, which stands to the left of it
    factors = _readable([factor for factor in _FACTORS if low <= 1.0 / factor <= high], high / low)
    ticks = [f"{factor:g}x<br>{_in_units(view.baseline_cost / factor, view.cost)}" for factor in factors]
    better = "smaller" if view.cost == "size" else "faster"
    figure.update_xaxes(
        type="log", tickvals=[1.0 / factor for factor in factors], ticktext=ticks, tickangle=0,
        gridcolor=GRID, range=[math.log10(low), math.log10(high)],
        title=f"{view.cost}, times {better} than uncompressed",
    )  # fmt: skip


def _readable(factors: Sequence[float], span: float) -> list[float]:
    """Factors that keep a twelfth of the axis apart, which spans the factor ``span``."""
    kept: list[float] = []
    for factor in factors:
        if all(abs(math.log(factor / other)) > math.log(span) / 12 for other in kept):
            kept.append(factor)
    return kept


def _in_units(value: float, cost: Cost) -> str:
    return formats.kilobytes(value) if cost == "size" else formats.milliseconds(value)
