"""A plan is frozen, survives JSON and refuses what it does not know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.plan import (
    ArchitectureSpec,
    DistillationSpec,
    Plan,
    Precision,
    PruningSpec,
    QuantizationSpec,
    TrainingSpec,
)

names = st.text("abc.01", min_size=1, max_size=6)
options = st.one_of(st.integers(-5, 200), st.text(max_size=5), st.floats(-10, 10), st.booleans())
plans = st.builds(
    Plan,
    architecture=st.builds(
        ArchitectureSpec,
        family=st.sampled_from(["base", "space"]),
        choices=st.dictionaries(names, options, max_size=3),
        dropped_blocks=st.lists(names, max_size=3).map(tuple),
    ),
    pruning=st.builds(PruningSpec, ratios=st.dictionaries(names, st.floats(0, 0.99), max_size=3)),
    distillation=st.builds(
        DistillationSpec, alpha=st.floats(0, 1), temperature=st.floats(0.1, 20), hint_weight=st.floats(0, 5)
    ),
    quantization=st.builds(
        QuantizationSpec, precisions=st.dictionaries(names, st.sampled_from(list(Precision)), max_size=4)
    ),
    training=st.builds(TrainingSpec, steps=st.integers(0, 10**6), start=st.text("0123456789abcdef", max_size=64)),
    seed=st.integers(0, 2**31),
)


@given(plans)
def test_a_plan_survives_its_json(plan: Plan) -> None:
    again = Plan.model_validate_json(plan.model_dump_json(indent=1))
    assert again == plan
    # options of a model space keep their kind: 1, 1.0 and true name different members
    kinds = [(type(value), value) for value in again.architecture.choices.values()]
    assert kinds == [(type(value), value) for value in plan.architecture.choices.values()]
    assert again.model_dump_json() == plan.model_dump_json()


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("seed", None),
        ("training", "steps"),
        ("architecture", "family"),
        ("distillation", "alpha"),
        ("quantization", "precisions"),
    ],
)
def test_a_plan_is_frozen(part: str, field: str | None) -> None:
    plan = Plan()
    target, name = (plan, part) if field is None else (getattr(plan, part), field)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(target, name, getattr(target, name))


def test_plans_do_not_share_their_defaults() -> None:
    first, second = Plan(), Plan()
    assert first == second
    assert first.pruning.ratios is not second.pruning.ratios
    assert first.architecture.choices is not second.architecture.choices


@pytest.mark.parametrize(
    "change",
    [
        {"sead": 1},
        {"training": {"steps": -1}},
        {"distillation": {"alpha": 1.2}},
        {"distillation": {"temperature": 0}},
        {"distillation": {"hint_weight": -0.1}},
        {"quantization": {"precisions": {"conv": "w5a8"}}},
        {"quantization": {"precision": {}}},
        {"pruning": {"ratios": {"conv": "half"}}},
    ],
)
def test_a_plan_refuses_what_it_does_not_know(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate_json(json.dumps(change))


@pytest.mark.parametrize(
    ("precision", "bits", "integer"),
    [
        ("float32", None, False), ("w8", 8, False), ("w6", 6, False), ("w4", 4, False), ("w3", 3, False), ("w2", 2, False),
        ("w8a8", 8, True), ("w7a8", 7, True), ("w6a8", 6, True), ("w4a8", 4, True), ("w3a8", 3, True), ("w2a8", 2, True),
        ("w8a8_dynamic", 8, True), ("w6a8_dynamic", 6, True), ("w4a8_dynamic", 4, True), ("w3a8_dynamic", 3, True),
        ("w2a8_dynamic", 2, True), ("w7a8_dynamic", 7, True),
    ],
)  # fmt: skip
def test_a_precision_says_its_bits_and_its_kernels(precision: str, bits: int | None, integer: bool) -> None:
    assert Precision(precision).weight_bits == bits
    assert Precision(precision).integer_activations is integer
    assert Precision(precision).dynamic is precision.endswith("dynamic")
    assert str(Precision(precision)) == precision


def test_the_precisions_are_those_of_the_study_files() -> None:
    assert len(Precision) == 18
    # float weights with 8-bit activations gain nothing and are no option
    assert "a8" not in list(Precision) and "float32a8" not in list(Precision)


@pytest.mark.parametrize("precision", list(Precision))
def test_what_cannot_saturate_is_the_same_but_for_a_bit(precision: Precision) -> None:
    exact = precision.without_saturation()
    assert exact.weight_bits != 8 or not exact.integer_activations
    assert (exact.stored_bits, exact.dynamic) == (precision.stored_bits, precision.dynamic)
    assert exact is precision or (precision.weight_bits, exact.weight_bits) == (8, 7)
    assert exact.without_saturation() is exact


@pytest.mark.parametrize("precision", list(Precision))
def test_each_kind_of_layer_gets_what_its_kernel_can(precision: Precision) -> None:
    for kind in ("convolution", "linear", "embedding"):
        found = precision.for_layer(kind)
        assert found.stored_bits == precision.stored_bits
        assert found.for_layer(kind) is found
    assert precision.for_layer("linear") is precision
    assert not precision.for_layer("convolution").dynamic
    assert precision.for_layer("convolution").integer_activations == precision.integer_activations
    assert not precision.for_layer("embedding").integer_activations


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        ({"quantization": {"precisions": {"a": "float32", "b": "float32"}}, "pruning": {"ratios": {"a": 0.0}}}, True),
        ({"seed": 5, "training": {"start": "a" * 64}, "distillation": {"alpha": 0.5}}, True),
        ({"quantization": {"precisions": {"a": "float32", "b": "w8a8"}}}, False),
        ({"pruning": {"ratios": {"a": 0.0, "b": 0.5}}}, False),
        ({"architecture": {"dropped_blocks": ["a"]}}, False),
        ({"architecture": {"family": "space"}}, False),
        ({"training": {"steps": 1}}, False),
    ],
)
def test_a_plan_that_changes_nothing_is_the_baselines(changes: dict[str, Any], expected: bool) -> None:
    assert Plan.model_validate(changes).changes_nothing is expected
