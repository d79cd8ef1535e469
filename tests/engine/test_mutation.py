"""A mutated plan is a good one with one decision changed, and it builds."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
from benches import make_bench
from ladders import PRECISIONS, SECTION, make_guide, with_inner
from sequences import Encoder
from sequences import task as sequence_task
from torch import nn

from autocompress.candidate import Accuracy, Candidate, Estimate, Latency, Measurement, Origin, State
from autocompress.config import SpaceSection
from autocompress.data.task import TaskData
from autocompress.engine.guided import Guide
from autocompress.engine.mutation import FASTER, FEWER_BITS, LEAST_FASTER, LEAST_SMALLER, mutated, reduced
from autocompress.engine.space import PerLayer
from autocompress.layers import trace, weight_layers
from autocompress.models import space_labels
from autocompress.pipeline import build_network, take_over
from autocompress.plan import DistillationSpec, Plan, Precision, QuantizationSpec

MUTATIONS = 40


@pytest.fixture(scope="module")
def base(trained: nn.Module, digits: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    return make_guide(make_bench(trained, digits), tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def with_space(
    trained: nn.Module, digits: TaskData, small_space: Any, tmp_path_factory: pytest.TempPathFactory
) -> Guide:
    section = SpaceSection(base=False, precision=PRECISIONS, sparsity=SECTION.sparsity, model_space="loaded")
    return make_guide(make_bench(trained, digits, small_space), tmp_path_factory.mktemp("table"), section)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    torch.manual_seed(1)
    precisions = (Precision.W8A8_DYNAMIC, Precision.W4A8_DYNAMIC)
    section = SpaceSection(precision=precisions, sparsity=(0.0, 0.25, 0.5))
    bench = with_inner(Encoder(2).eval(), sequence_task(numbers=False))
    return make_guide(bench, tmp_path_factory.mktemp("table"), section)


def estimated(trial: int, plan: Plan) -> Candidate:
    estimate = Estimate(size_ratio=0.1, latency_ratio=0.2, divergence=0.1, shared_drop_points=1.0, drop_points=1.0)
    return Candidate(trial=trial, origin=Origin.SAMPLED, state=State.ESTIMATED, plan=plan, estimate=estimate)


def trained_file(trial: int, plan: Plan) -> Candidate:
    latency = Latency(latency_ms=0.1, p90_ms=0.1, baseline_ms=1.0, ratio=0.1, ratio_low=0.1, ratio_high=0.1)
    measurement = Measurement(
        size_bytes=1000, compressed_bytes=1000, size_ratio=0.1, latency=latency,
        validation=Accuracy(correct=99, total=100, lost=1),
    )  # fmt: skip
    return Candidate(trial=trial, origin=Origin.PROMOTED, state=State.COMPLETE, plan=plan, measurement=measurement)


def parent_of(guide: Guide, seed: int = 0) -> Plan:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return guide.suggest_plan(PerLayer(study.ask()), 0)


def children(guide: Guide, parent: Plan) -> list[Plan]:
    found = [mutated([estimated(0, parent)], guide, seed) for seed in range(MUTATIONS)]
    assert all(pair is not None and pair[1].plan == parent for pair in found)
    return [pair[0] for pair in found if pair is not None]


def bits_of(plan: Plan) -> dict[str, Precision]:
    return dict(plan.quantization.precisions)


# One decision


def test_a_child_of_the_base_differs_in_one_decision(base: Guide) -> None:
    parent = parent_of(base)
    kinds = set()
    for child in children(base, parent):
        blocks = set(child.architecture.dropped_blocks) ^ set(parent.architecture.dropped_blocks)
        shared = bits_of(child).keys() & bits_of(parent).keys()
        other_bits = [name for name in shared if bits_of(child)[name] != bits_of(parent)[name]]
        groups = child.pruning.ratios.keys() & parent.pruning.ratios.keys()
        other_ratios = [name for name in groups if child.pruning.ratios[name] != parent.pruning.ratios[name]]
        if blocks:
            kinds.add("block")
            assert len(blocks) == 1 and not other_bits and not other_ratios
            gone = bits_of(child).keys() ^ bits_of(parent).keys()
            assert gone and all(name.startswith(f"{min(blocks)}.") for name in gone)
        elif other_ratios:
            kinds.add("ratio")
            assert len(other_ratios) == 1 and not other_bits
            options = list(base.space.base_ratios()["channels"])
            (name,) = other_ratios
            steps = options.index(child.pruning.ratios[name]) - options.index(parent.pruning.ratios[name])
            assert abs(steps) == 1
        else:
            kinds.add("bits")
            assert other_bits and child.pruning == parent.pruning
        assert child.distillation == parent.distillation
    assert kinds == {"block", "ratio", "bits"}


def test_a_child_in_the_model_space_differs_in_one_choice(with_space: Guide) -> None:
    parent = parent_of(with_space, seed=1)
    assert parent.architecture.family == "space"
    different = 0
    for child in children(with_space, parent):
        assert child.architecture.family == "space"
        mine, theirs = child.architecture.choices, parent.architecture.choices
        changed = [label for label in mine.keys() & theirs.keys() if mine[label] != theirs[label]]
        assert len(changed) <= 1
        # a choice brings or takes those that only a deeper member has
        assert changed or mine == theirs
        different += bool(changed)
    assert different > 0


@pytest.mark.parametrize("name", ["base", "with_space", "words"])
def test_every_child_builds_and_has_a_precision_for_each_layer(name: str, request: pytest.FixtureRequest) -> None:
    guide: Guide = request.getfixturevalue(name)
    bench = guide.predictor.bench
    inputs = bench.data.example_inputs(2)
    for child in children(guide, parent_of(guide, seed=2))[:12]:
        network = build_network(bench, child)
        assert set(child.quantization.precisions) == set(weight_layers(trace(network, inputs, bench.data.axes)))
        with torch.no_grad():
            assert torch.isfinite(network(*inputs)).all()


def test_a_child_is_never_its_parent(base: Guide) -> None:
    parent = parent_of(base, seed=3)
    for child in children(base, parent):
        assert child.model_copy(update={"seed": parent.seed, "training": parent.training}) != parent


def test_convolutions_step_over_precisions_that_are_the_same_to_them(
    trained: nn.Module, digits: TaskData, tmp_path: Any
) -> None:
    section = SpaceSection(
        precision=(Precision.W8A8, Precision.W8A8_DYNAMIC, Precision.W4A8), sparsity=(0.0,), drop_blocks=False
    )
    guide = make_guide(make_bench(trained, digits), tmp_path, section)
    convolutions = {layer.name for layer in guide.analysis.layers if layer.kind == "convolution"}
    precisions = {layer.name: Precision.W8A8 for layer in guide.analysis.layers}
    parent = parent_of(guide).model_copy(update={"quantization": QuantizationSpec(precisions=precisions)})
    alone = [
        names
        for child in children(guide, parent)
        if len(names := [n for n in precisions if bits_of(child)[n] != precisions[n]]) == 1
    ]
    assert any(names[0] in convolutions for names in alone)


# Parents


def test_the_same_seed_gives_the_same_child(base: Guide) -> None:
    candidates = [estimated(n, parent_of(base, seed=n)) for n in range(4)]
    assert mutated(candidates, base, 5) == mutated(candidates, base, 5)
    plans = [found[0].model_copy(update={"seed": 0}) for n in range(12) if (found := mutated(candidates, base, n))]
    assert len({plan.model_dump_json() for plan in plans}) > 6


def test_without_candidates_there_is_nothing_to_change(base: Guide) -> None:
    assert mutated([], base, 0) is None
    whole = Candidate(trial=0, origin=Origin.ENQUEUED, state=State.FAILED, plan=Plan())
    assert mutated([whole], base, 0) is None


def test_a_child_comes_with_its_parent_and_keeps_its_seed(base: Guide) -> None:
    plan = parent_of(base, seed=4).model_copy(update={"seed": 77})
    parent = trained_file(3, plan)
    for seed in range(MUTATIONS):
        found = mutated([parent], base, seed)
        assert found is not None
        child, origin = found
        assert origin == parent and child.seed == 77
        assert child.training.start == "d" * 64 and child.training.steps == 50


# Less of what was trained


@pytest.mark.parametrize("name", ["base", "with_space", "words"])
def test_a_trained_network_is_reduced_until_nothing_is_left(name: str, request: pytest.FixtureRequest) -> None:
    """First in fewer bits, for smaller and smaller files; then networks that it contains, which are faster."""
    guide: Guide = request.getfixturevalue(name)
    plan = parent_of(guide, seed=2)
    finest = {layer: guide.space.section.precision[0].for_layer(kind_of(guide, plan, layer)) for layer in bits_of(plan)}
    parent = trained_file(3, plan.model_copy(update={"quantization": QuantizationSpec(precisions=finest)}))
    own, known = guide.predictor.size_ratio(parent.plan), [parent.plan]
    while (child := reduced(parent, guide, known)) is not None:
        assert all((p.weight_bits or 32) <= (finest[layer].weight_bits or 32) for layer, p in bits_of(child).items())
        assert child.training.start == "d" * 64 and child.training.steps == guide.space.steps(child.architecture.family)
        known.append(child)
    rounded = [child for child in known[1:] if child.network == parent.plan.network]
    assert known[1 : 1 + len(rounded)] == rounded
    factors = [own / guide.predictor.size_ratio(child) for child in rounded]
    assert 1 <= len(factors) <= len(FEWER_BITS) and min(factors) >= LEAST_SMALLER
    assert factors == sorted(factors)
    # the plan of another training is the same file
    trained = known[1].model_copy(update={"seed": 5, "distillation": DistillationSpec(alpha=0.5)})
    assert reduced(parent, guide, [trained, *known[2:]]) is None


@pytest.mark.parametrize("name", ["base", "with_space"])
def test_smaller_networks_begin_with_what_they_keep_of_a_trained_one(name: str, request: pytest.FixtureRequest) -> None:
    guide: Guide = request.getfixturevalue(name)
    bench = make_bench(request.getfixturevalue("trained"), request.getfixturevalue("digits"),
                       request.getfixturevalue("small_space") if name == "with_space" else None)  # fmt: skip
    smaller = 0
    for seed in range(6):
        parent = trained_file(3, parent_of(guide, seed))
        state = build_network(bench, parent.plan).state_dict()
        for child in smaller_networks(parent, guide):
            assert speed(child, guide) >= LEAST_FASTER * speed(parent.plan, guide)
            assert {bits.weight_bits for bits in bits_of(child).values()} <= {8, 6, 4, 3}
            left = take_over(bench, child, parent.plan, state)
            if left is None:  # another stride or kernel is no part of it
                assert name == "with_space"
                continue
            build_network(bench, child).load_state_dict(left)
            smaller += 1
            if name == "base":
                assert set(parent.plan.architecture.dropped_blocks) <= set(child.architecture.dropped_blocks)
                kept = {
                    group: ratio for group, ratio in parent.plan.pruning.ratios.items() if group in child.pruning.ratios
                }
                assert all(child.pruning.ratios[group] >= ratio for group, ratio in kept.items())
            else:
                labels, own = space_labels(guide.space.model_space), child.architecture.choices
                changed = [key for key, option in own.items() if option != parent.plan.architecture.choices[key]]
                if changed:  # none where a block went with its choices
                    (key,) = changed
                    assert own[key] == max(o for o in labels[key] if o < parent.plan.architecture.choices[key])
    assert smaller


def smaller_networks(parent: Candidate, guide: Guide) -> list[Plan]:
    known: list[Plan] = []
    while (child := reduced(parent, guide, known)) is not None:
        known.append(child)
    return [child for child in known if child.network != parent.plan.network]


def speed(plan: Plan, guide: Guide) -> float:
    return 1 / guide.predictor.latency_ratio(guide.predictor.operators(plan))


def test_what_has_the_fewest_bits_is_cut_alone(base: Guide) -> None:
    plan = parent_of(base, seed=2)
    least = dict.fromkeys(bits_of(plan), Precision.W3A8)
    coarsest = trained_file(3, plan.model_copy(update={"quantization": QuantizationSpec(precisions=least)}))
    child = reduced(coarsest, base, [])
    assert child is None or child.network != plan.network
    assert len(smaller_networks(coarsest, base)) <= len(FASTER)
    whole = plan.model_copy(update={"quantization": QuantizationSpec()})
    assert reduced(trained_file(3, whole), base, []) is None


def kind_of(guide: Guide, plan: Plan, name: str) -> str:
    return next(layer.kind for layer in guide.space.layers_of(plan.architecture) if layer.name == name)
