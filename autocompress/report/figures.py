"""Figures of a run beside the accuracy views; each is a plain value first and drawn from it second."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import plotly.graph_objects as go

from autocompress.candidate import Candidate, Origin
from autocompress.engine import pareto
from autocompress.plan import Plan, Precision
from autocompress.report import formats
from autocompress.report.style import (
    FRONT_COLOUR,
    GRID,
    PRECISION_COLOURS,
    STAGE_COLOURS,
    draw_vertical,
    layout,
)


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
    margin = {"l": 64, "r": 16, "t": 16, "b": 48}
    figure = go.Figure(layout=layout(height=300, showlegend=False, margin=margin))
    line = {"shape": "hv", "color": FRONT_COLOUR, "width": 2}
    template = "%{x:.1f} min: %{y:.3f}<extra></extra>"
    # From nothing at the start, or the first candidate would float.
    x, y = [0.0, *curve.minutes], [0.0, *curve.volumes]
    figure.add_scatter(x=x, y=y, mode="lines+markers", line=line, marker={"size": 4}, hovertemplate=template)
    if curve.continued_from is not None:
        draw_vertical(figure, curve.continued_from, "continued training of front members")
    reference = ", ".join(f"{value:g}" for value in curve.reference)
    figure.update_xaxes(title="minutes of search")
    figure.update_yaxes(title=f"hypervolume to ({reference})")
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
    figure = go.Figure(layout=layout(height=290))
    for precision in [*Precision, None]:
        chosen = [row for row in rows if row.precision is precision]
        if chosen:
            _draw_layer_bars(figure, precision, chosen)
    order = [html.escape(row.layer) for row in rows]
    small = {"size": 10}
    figure.update_xaxes(categoryorder="array", categoryarray=order, tickangle=-90, tickfont=small, dtick=1)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(title="channels kept", range=[0, 1.02], tickformat=".0%", gridcolor=GRID)
    figure.update_layout(bargap=0.15, barmode="overlay", margin={"l": 60, "r": 10, "t": 36, "b": 10})
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
    figure.update_layout(barmode="stack", legend={"traceorder": "normal", "y": 1.15}, margin={"b": 48, "l": 16})
    figure.update_xaxes(title="minutes in trials", gridcolor=GRID)
    return figure


def _draw_layer_bars(figure: go.Figure, precision: Precision | None, rows: Sequence[LayerRow]) -> None:
    name = precision.value if precision else "not set"
    colour = PRECISION_COLOURS[precision] if precision else GRID
    layers = [html.escape(row.layer) for row in rows]
    kept = [row.kept for row in rows]
    figure.add_bar(
        x=layers, y=kept, name=name, marker={"color": colour}, showlegend=True,
        hovertemplate=f"%{{x}}<br>%{{y:.0%}} of channels kept<br>{name}<extra></extra>",
    )  # fmt: skip
