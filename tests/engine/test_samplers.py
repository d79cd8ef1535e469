"""Each sampler meets the space it can handle, and a resumed search does not draw again what it drew."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from torch import nn

from autocompress.analysis import analyse
from autocompress.config import SpaceSection, TrainingSection
from autocompress.data.task import TaskData
from autocompress.engine.samplers import START_UP_TRIALS, make_sampler, parametrisation
from autocompress.engine.space import PerLayer, PerStage, Space, obvious_plans
from autocompress.plan import Plan, Precision

SAMPLERS = {"tpe": TPESampler, "nsga2": NSGAIISampler, "gp": GPSampler, "random": RandomSampler}
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


@pytest.fixture(scope="module")
def space(resnet20: nn.Module, digits: TaskData, small_space: Any) -> Space:
    section = SpaceSection(precision=(Precision.W8A8, Precision.W4A8, Precision.W2A8), model_space="loaded")
    return Space(
        section=section, training=TrainingSection(), base=analyse(resnet20, digits.example_inputs(8)),
        inputs=digits.example_inputs(2), base_digest="", seed=0, model_space=small_space,
    )  # fmt: skip


def figures(plan: Plan) -> tuple[float, float, float]:
    """Made-up objectives: fewer bits and fewer blocks are smaller, faster and worse."""
    bits = [precision.weight_bits or 32 for precision in plan.quantization.precisions.values()]
    size = math.log(sum(bits) / 160)
    latency = math.log(len(bits) / 20) - 0.2 * sum(plan.pruning.ratios.values()) / 9
    return 4.0 - sum(bits) / len(bits) / 2 + 0.3 * len(plan.architecture.dropped_blocks), size, latency


def search(space: Space, name: str, mode: str, trials: int, seed: int = 0) -> tuple[optuna.Study, list[Plan]]:
    """A study without any training, asked and told as a search does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["maximize"] if mode == "scalar" else ["minimize"] * 3
    study, plans = optuna.create_study(directions=directions), []
    for named in obvious_plans(space, parametrisation(name)):
        study.enqueue_trial(named.params or {}, user_attrs={"outside": named.params is None})
    for _ in range(trials):
        study.sampler = make_sampler(name, seed, len(study.get_trials(deepcopy=False)), 0)
        trial = study.ask()
        if trial.user_attrs.get("outside"):
            study.tell(trial, state=TrialState.PRUNED)
            continue
        plan = space.suggest_plan(parametrisation(name)(trial), trial.number)
        plans.append(plan)
        drop, size, latency = figures(plan)
        trial.set_constraint("max_accuracy_drop", drop - 3.0)
        study.tell(trial, -drop if mode == "scalar" else [drop, size, latency])
    return study, plans


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[pytest.mark.slow] if name == "gp" else [])
        for name in SAMPLERS
        for mode in ("pareto", "scalar")
    ],
)
def test_each_sampler_finds_plans_in_each_mode(name: str, mode: str, space: Space) -> None:
    # of the obvious plans two are outside of the space; a draw of GP takes seconds
    study, plans = search(space, name, mode, 2 + START_UP_TRIALS + (1 if name == "gp" else 20))
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) == 2
    assert states.count(TrialState.COMPLETE) == len(plans) == len(states) - 2
    different = {plan.model_copy(update={"seed": 0}).model_dump_json() for plan in plans}
    assert len(different) >= 0.8 * len(plans)  # a child of NSGA-II may be its parent's twin
    assert len(study.best_trials) > 0


@each_sampler
def test_a_sampler_models_the_space_and_not_its_random_start(name: str, space: Space) -> None:
    """GP and NSGA-II see what all trials share, which must not be nothing."""
    # a draw of GP takes up to a minute, and its start is enough to see what it models
    study, _ = search(space, name, "pareto", {"tpe": 40, "gp": 2 + START_UP_TRIALS}.get(name, 12))
    sampler = make_sampler(name, 0, 100, 0)
    relative = sampler.infer_relative_search_space(study, study.trials[-1])
    last = set(study.trials[-1].distributions)
    if name == "random":
        assert relative == {}
    elif name == "tpe":  # variables of both families, grouped by the trials that have them
        assert set(relative) >= last
        assert {variable.split(".")[0] for variable in relative} >= {"base", "space", "family", "alpha"}
    else:
        assert set(relative) == last
        assert len(relative) == 6 * 4 + 1 + 3


@each_sampler
def test_names_give_the_samplers(name: str) -> None:
    assert type(make_sampler(name, 0, 0, 0)) is SAMPLERS[name]


@each_sampler
def test_fixed_lists_are_for_those_that_intersect(name: str) -> None:
    assert parametrisation(name) is (PerStage if name in ("nsga2", "gp") else PerLayer)


# Seeds


def first_draw(name: str, space: Space, seed: int, draws: int, rank: int) -> str:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=make_sampler(name, seed, draws, rank), directions=["minimize"] * 3)
    return space.suggest_plan(parametrisation(name)(study.ask()), 0).model_dump_json()


@each_sampler
def test_a_draw_follows_from_seed_number_and_rank(name: str, space: Space) -> None:
    assert first_draw(name, space, 1, 5, 0) == first_draw(name, space, 1, 5, 0)
    others = [(2, 5, 0), (1, 6, 0), (1, 5, 1)]
    assert len({first_draw(name, space, *numbers) for numbers in [(1, 5, 0), *others]}) == 4


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random", pytest.param("gp", marks=pytest.mark.slow)])
def test_a_resumed_search_goes_on_as_if_it_had_not_stopped(name: str, space: Space) -> None:
    """The sampler is made anew for each draw; nothing is remembered outside of the trials."""
    trials = 2 + START_UP_TRIALS + (1 if name == "gp" else 6)
    assert search(space, name, "scalar", trials)[1] == search(space, name, "scalar", trials)[1]
