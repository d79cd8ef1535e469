"""Figures of a run. Each is computed as a plain value first and drawn from it second.

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

from autocompress.candidate import Candidate, Measurement, Origin, State
from autocompress.config import LimitsSection
from autocompress.plan import Plan, Precision
from autocompress.report import formats
from autocompress.report.frame import front_rows
from autocompress.report.style import (
    BASELINE,
    GRID,
    INK,
    KINDS,
    LIMIT_COLOUR,
    MUTED,
    PRECISION_COLOURS,
    STAGE_COLOURS,
    STOPPED,
    layout,
)
from autocompress.search import pareto

Cost = Literal["size", "latency"]

_FACTORS = (0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)


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

    ``points`` has the kinds of ``KINDS``; ``stopped`` those without an accuracy; ``continued`` pairs of
    ((cost ratio, accuracy) of the parent, of the child); ``accuracy_range`` (percent) is where the front is,
    ``below`` counts the candidates under it.
    """

    cost: Cost
    baseline: Label
    baseline_cost: float
    points: dict[str, Points]
    stopped: Points
    named: list[Label]
    continued: list[tuple[tuple[float, float], tuple[float, float]]]
    cost_limits: list[CostLimit]
    accuracy_limit: float | None
    accuracy_range: tuple[float, float]
    below: int


def accuracy_view(
    frame: pd.DataFrame, baseline: Measurement, limits: LimitsSection, cost: Cost
) -> AccuracyView:
    """What the accuracy-size or the accuracy-latency figure shows; ``frame`` is of ``candidates_frame``."""
    measured = frame[frame["val_accuracy"].notna() & frame[f"{cost}_ratio"].notna()]
    untrained = frame[frame["val_accuracy"].isna() & frame[f"{cost}_ratio"].notna()]
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
    figure.updatelayout(yaxis2=edge, hovermode="closest")
    return figure


@dataclass(frozen=True)
class HypervolumeCurve:
    """Hypervolume after each feasible candidate.

    ``continued_from`` is the minute in which continued training began.
    """

    minutes: list[float]
    volumes: list[float]
    continued_from: float | None
    reference: tuple[float, float, float]


def hypervolume_curve(candidates: Sequence[Candidate]) -> HypervolumeCurve:
    """Hypervolume over the run's time."""
    history = pareto.hypervolume_history(candidates)
    starts = [c.started_s / 60 for c in candidates if c.origin is Origin.CONTINUED]
    return HypervolumeCurve(
        minutes=[seconds / 60 for seconds, _ in history],
        volumes=[volume for _, volume in history],
        continued_from=min(starts, default=None),
        reference=pareto.REFERENCE_POINT,
    )


def draw_hypervolume(curve: HypervolumeCurve) -> go.Figure:
    """A step at each candidate that enlarges the dominated volume."""
    figure = go.Figure(layout=layout(height=330, showlegend=False))
    line = {"shape": "hv", "color": KINDS["front"]["color"], "width": 2}
    template = "%{x:.1f} min: %{y:.3f}<extra></extra>"
    # From nothing at the start, or the first candidate would float.
    x, y = [0.0, *curve.minutes], [0.0, *curve.volumes]
    figure.add_scatter(x=x, y=y, mode="lines+markers", line=line, marker={"size": 4}, hovertemplate=template)
    if curve.continued_from is not None:
        _vertical(figure, curve.continued_from, "continued training of front members")
    reference = ", ".join(f"{value:g}" for value in curve.reference)
    figure.update_xaxes(title="minutes of search")
    figure.update_yaxes(title=f"hypervolume<br>reference point ({reference})")
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(gridcolor=GRID, zeroline=False, rangemode="tozero")
    return figure


class LayerRow(NamedTuple):
    """One layer of a candidate: share of its output channels that stays, and its precision."""

    layer: str
    kept: float
    precision: Precision | None


def layer_rows(plan: Plan) -> list[LayerRow]:
    """Layers of the network as built, in its order.

    A pruned group stands under its root layer; layers that follow another layer's group show 1.
    """
    ratios, precisions = plan.pruning.ratios, plan.quantization.precisions
    layers = [*precisions, *(name for name in ratios if name not in precisions)]
    return [LayerRow(layer, 1.0 - ratios.get(layer, 0.0), precisions.get(layer)) for layer in layers]


def draw_layers(rows: Sequence[LayerRow]) -> go.Figure:
    """A bar a layer: its height is the share of channels kept, its colour the precision."""
    figure = go.Figure(layout=layout(height=230 + 4 * max((len(row.layer) for row in rows), default=0)))
    for precision in [*Precision, None]:
        chosen = [row for row in rows if row.precision is precision]
        if chosen:
            _draw_layer_bars(figure, precision, chosen)
    order = [html.escape(row.layer) for row in rows]
    small = {"size": 10}
    figure.update_xaxes(categoryorder="array", categoryarray=order, tickangle=-90, tickfont=small, dtick=1)
    figure.update_yaxes(title="channels kept", range=[0, 1.02], tickformat=".0%", gridcolor=GRID)
    figure.updatelayout(bargap=0.15, barmode="overlay", margin={"l": 60, "r": 10, "t": 36, "b": 10})
    return figure


def stage_time(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Seconds by stage over all trials, longest first; what no stage claims is ``other``."""
    seconds: dict[str, float] = {}
    for candidate in candidates:
        for stage, spent in candidate.stage_seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    ordered = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    other = sum(c.finished_s - c.started_s for c in candidates) - sum(seconds.values())
    return ordered | ({"other": other} if other > 0 else {})


def draw_stage_time(seconds: dict[str, float]) -> go.Figure:
    """One bar, split by stage."""
    figure = go.Figure(layout=layout(height=150))
    total = sum(seconds.values())
    for number, (stage, spent) in enumerate(seconds.items()):
        share = f"{100 * spent / total:.1f} %" if total > 0 else ""
        name, colour = html.escape(stage), STAGE_COLOURS[number % len(STAGE_COLOURS)]
        figure.add_bar(
            y=[""], x=[spent / 60], orientation="h", name=f"{name} {share}", marker={"color": colour},
            hovertext=f"{name}: {formats.duration(spent)}, {share}", hoverinfo="text",
        )  # fmt: skip
    figure.updatelayout(barmode="stack", legend={"traceorder": "normal", "y": 1.15})
    figure.update_xaxes(title="minutes in trials", gridcolor=GRID)
    return figure


def _by_kind(measured: pd.DataFrame) -> dict[str, pd.DataFrame]:
    complete = measured["state"] == State.COMPLETE.value
    return {
        "dominated": measured[measured["feasible"] & ~measured["on_front"]],
        "over an accuracy limit": measured[complete & ~measured["feasible"]],
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
    parent = "" if pd.isna(row["parent"]) else f" of trial {row['parent']}"
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


def _continued(measured: pd.DataFrame, cost: Cost) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    place = {
        int(row["trial"]): (float(row[f"{cost}_ratio"]), 100.0 * float(row["val_accuracy"]))
        for row in measured.to_dict("records")
    }
    children = measured[measured["parent"].notna()]
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
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name="trained on", hoverinfo="skip")


def _draw_labels(figure: go.Figure, view: AccuracyView) -> None:
    # Obvious plans often share a cost, so their names alternate above and below.
    for number, label in enumerate(view.named):
        if view.accuracy_range[0] <= label.accuracy <= view.accuracy_range[1]:
            figure.add_annotation(
                x=math.log10(label.cost_ratio), y=label.accuracy, text=html.escape(label.text), ax=24,
                ay=-22 if number % 2 == 0 else 22, xanchor="left", arrowwidth=1, arrowcolor=MUTED,
                arrowhead=0, standoff=5, font={"size": 12, "color": INK},
            )  # fmt: skip


def _draw_limits(figure: go.Figure, view: AccuracyView) -> None:
    for limit in view.cost_limits:
        _vertical(figure, limit.cost_ratio, limit.text, annotate_at=math.log10(limit.cost_ratio))
    if view.accuracy_limit is not None:
        line = {"color": KINDS["over an accuracy limit"]["color"], "width": 1, "dash": "dash"}
        y = view.accuracy_limit
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=y, y1=y, line=line)
        figure.add_annotation(
            xref="paper", x=1, y=y, text="limit of the drop", showarrow=False, xanchor="right",
            yanchor="bottom", font={"size": 11, "color": line["color"]},
        )  # fmt: skip


def _vertical(figure: go.Figure, x: float, text: str, annotate_at: float | None = None) -> None:
    line = {"color": LIMIT_COLOUR, "width": 1, "dash": "dash"}
    figure.add_shape(type="line", yref="paper", x0=x, x1=x, y0=0, y1=1, line=line)
    # On a log axis a shape takes the value and an annotation its logarithm.
    figure.add_annotation(
        x=x if annotate_at is None else annotate_at, yref="paper", y=1, text=html.escape(text),
        showarrow=False, xanchor="right", yanchor="top", xshift=-4, font={"size": 11, "color": LIMIT_COLOUR},
    )  # fmt: skip


def _cost_axis(figure: go.Figure, view: AccuracyView) -> None:
    shown = [ratio for points in (*view.points.values(), view.stopped) for ratio in points.cost_ratio]
    low, high = min([*shown, 1.0]) / 1.12, max([*shown, 1.0]) * 1.12
    factors = [factor for factor in _FACTORS if low <= 1.0 / factor <= high]
    ticks = [f"{factor:g}x<br>{_in_units(view.baseline_cost / factor, view.cost)}" for factor in factors]
    better = "smaller" if view.cost == "size" else "faster"
    figure.update_xaxes(
        type="log", tickvals=[1.0 / factor for factor in factors], ticktext=ticks, gridcolor=GRID,
        range=[math.log10(low), math.log10(high)], title=f"{view.cost}, times {better} than uncompressed",
    )  # fmt: skip


def _in_units(value: float, cost: Cost) -> str:
    return formats.kilobytes(value) if cost == "size" else formats.milliseconds(value)


def _draw_layer_bars(figure: go.Figure, precision: Precision | None, rows: Sequence[LayerRow]) -> None:
    name = precision.value if precision else "not set"
    colour = PRECISION_COLOURS[precision] if precision else GRID
    layers = [html.escape(row.layer) for row in rows]
    kept = [row.kept for row in rows]
    figure.add_bar(
        x=layers, y=kept, name=name, marker={"color": colour}, showlegend=True,
        hovertemplate=f"%{{x}}<br>%{{y:.0%}} of channels kept<br>{name}<extra></extra>",
    )  # fmt: skip
