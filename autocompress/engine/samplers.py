"""Optuna samplers by name, and the parametrisation each one can handle."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress.engine.space import Draw, PerLayer, PerStage, Suggests

START_UP_TRIALS = 5
POPULATION = 8


def make_sampler(name: str, seed: int, draws: int, rank: int, start_up: int = START_UP_TRIALS) -> BaseSampler:
    """A fresh sampler for one draw.

    The seed derives from the study's seed, how many trials there are and the worker's rank: a resumed
    search must not repeat its draws, nor two workers draw alike.

    Args:
        start_up: trials before a model steers; those that were told as pruned count.
    """
    own = int(np.random.SeedSequence([seed, draws, rank]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=start_up, seed=own)
        if name == "nsga2":
            return NSGAIISampler(population_size=POPULATION, seed=own)
        if name == "gp":
            return GPSampler(n_startup_trials=start_up, seed=own)
    return RandomSampler(seed=own)


def parametrisation(name: str) -> Callable[[Suggests], Draw]:
    """GP and NSGA-II sample what all trials share; the others follow conditional variables."""
    return PerStage if name in ("nsga2", "gp") else PerLayer
