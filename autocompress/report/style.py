"""Colours, markers, layout and lines that all figures share."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from autocompress.plan import Precision

INK, MUTED, GRID, LIMIT_COLOUR = "#1f2933", "#7b8794", "#e4e7eb", "#b7791f"
FRONT_COLOUR = "#0b6e8a"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
BASELINE = "uncompressed file"
STOPPED = "stopped at a limit, not trained"

_CROSS = {"width": 2, "color": "#c0392b"}
# Colour and marker both tell the kinds apart, for print and for the colour-blind.
KINDS: dict[str, dict[str, Any]] = {
    "dominated": {"symbol": "circle-open", "color": "#8795a1", "size": 8},
    "trained, over a limit": {"symbol": "x-thin", "color": _CROSS["color"], "size": 8, "line": _CROSS},
    "front": {"symbol": "circle", "color": FRONT_COLOUR, "size": 11},
}
# Blue runs on integer kernels, orange is decoded to float; darker is fewer bits.
PRECISION_COLOURS = {
    Precision.FLOAT32: "#52606d",
    Precision.W8: "#f6c79b",
    Precision.W6: "#f0a35e",
    Precision.W4: "#d96f32",
    Precision.W3: "#b04d17",
    Precision.W2: "#7c330b",
    Precision.W8A8: "#b9dde8",
    Precision.W7A8: "#9ccbdc",
    Precision.W6A8: "#7fbdd0",
    Precision.W4A8: "#358fab",
    Precision.W3A8: "#0b6e8a",
    Precision.W2A8: "#043c4b",
    Precision.W8A8_DYNAMIC: "#d6dfb0",
    Precision.W7A8_DYNAMIC: "#c6d39d",
    Precision.W6A8_DYNAMIC: "#b5c689",
    Precision.W4A8_DYNAMIC: "#8fa455",
    Precision.W3A8_DYNAMIC: "#6b7f3f",
    Precision.W2A8_DYNAMIC: "#3f4d1f",
}
STAGE_COLOURS = ("#0b6e8a", "#8cc5d6", "#d96f32", "#f4c095", "#6b7f3f", "#b5c689", "#7d5ba6", "#c3aed6")


def layout(height: int, **changes: Any) -> dict[str, Any]:
    """Layout of a figure ``height`` pixels high that takes the width it is given."""
    return {
        "template": "none",
        "height": height,
        "font": {"family": FONT, "size": 13, "color": INK},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "margin": {"l": 64, "r": 16, "t": 48, "b": 64},
        "hoverlabel": {"bgcolor": "white", "align": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "white",
        **changes,
    }


def draw_vertical(figure: go.Figure, x: float, text: str, annotate_at: float | None = None) -> None:
    """A dashed line at ``x`` with its meaning beside it; ``annotate_at`` is its place on a log axis."""
    line = {"color": LIMIT_COLOUR, "width": 1, "dash": "dash"}
    figure.add_shape(type="line", yref="paper", x0=x, x1=x, y0=0, y1=1, line=line)
    # On a log axis a shape takes the value and an annotation its logarithm.
    figure.add_annotation(
        x=x if annotate_at is None else annotate_at, yref="paper", y=1, text=html.escape(text),
        showarrow=False, xanchor="right", yanchor="top", xshift=-4, font={"size": 11, "color": LIMIT_COLOUR},
    )  # fmt: skip
