"""Values behind the figures of hypervolume, layers and time."""

from __future__ import annotations

import pytest
from made_up_run import HOSTILE, Run

from autocompress.engine.pareto import REFERENCE_POINT, hypervolume_history
from autocompress.plan import Plan, Precision, PruningSpec, QuantizationSpec
from autocompress.report.figures import (
    LayerRow,
    draw_hypervolume,
    draw_layers,
    draw_stage_time,
    hypervolume_curve,
    layer_rows,
    stage_time,
)
from autocompress.report.style import PRECISION_COLOURS


def test_hypervolume_is_the_history_in_minutes(run: Run) -> None:
    curve = hypervolume_curve(run.candidates)
    history = hypervolume_history(run.candidates)
    assert curve.minutes == pytest.approx([seconds / 60 for seconds, _ in history])
    assert curve.volumes == [volume for _, volume in history] == sorted(curve.volumes)
    assert curve.continued_from == pytest.approx(2110 / 60)
    assert curve.reference == REFERENCE_POINT
    assert "(3, 0, 0)" in draw_hypervolume(curve).layout.yaxis.title.text


def test_layers_keep_the_plans_order_and_show_what_stays() -> None:
    plan = Plan(
        pruning=PruningSpec(ratios={"b": 0.25, "free": 0.5}),
        quantization=QuantizationSpec(precisions={"z": Precision.W4A8, "b": Precision.FLOAT32}),
    )
    assert layer_rows(plan) == [
        LayerRow("z", 1.0, Precision.W4A8),
        LayerRow("b", 0.75, Precision.FLOAT32),
        LayerRow("free", 0.5, None),
    ]
    figure = draw_layers(layer_rows(plan))
    assert [bar.name for bar in figure.data] == ["float32", "w4a8", "not set"]
    assert list(figure.layout.xaxis.categoryarray) == ["z", "b", "free"]
    assert HOSTILE not in str(draw_layers([LayerRow(HOSTILE, 1.0, None)]).to_dict())


def test_time_adds_up_to_the_time_in_trials(run: Run) -> None:
    seconds = stage_time(run.candidates)
    assert sum(seconds.values()) == pytest.approx(sum(c.finished_s - c.started_s for c in run.candidates))
    assert next(iter(seconds)) == "train" and seconds["other"] > 0
    assert stage_time([]) == {}
    assert len(draw_stage_time(seconds).data) == len(seconds)


def test_nothing_measured_can_be_drawn() -> None:
    assert hypervolume_curve([]).volumes == []
    draw_hypervolume(hypervolume_curve([]))
    draw_layers([])
    draw_stage_time({})


def test_every_precision_has_a_colour_of_its_own() -> None:
    assert set(PRECISION_COLOURS) == set(Precision)
    assert len(set(PRECISION_COLOURS.values())) == len(Precision)
