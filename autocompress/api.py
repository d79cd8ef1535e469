"""The search from Python: a live network and data in memory instead of a study file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn

from autocompress.config import StudyConfig, first_problem
from autocompress.data.function import given_task
from autocompress.engine.baseline import Inputs, fit_together, training_threads
from autocompress.engine.events import Silent, Watcher
from autocompress.engine.study import search as run_search
from autocompress.errors import ConfigError
from autocompress.models import check_finite, load_space, weights_digest
from autocompress.progress import watcher_for
from autocompress.results import Results

LIVE = "live"
"""What a study file of such a run says instead of a source: the network and the data came from memory."""


def search(
    model: nn.Module,
    data: Any,
    *,
    budget: str | float | None = "30m",
    trials: int | None = None,
    limits: Mapping[str, Any] | None = None,
    out: Path | str = "runs/live",
    seed: int = 0,
    train_base: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    metric: Callable[[Tensor, Tensor], float] | None = None,
    quiet: bool = False,
    **sections: Mapping[str, Any],
) -> Results:
    """Search for smaller and faster versions of a trained network; the same call again resumes its run.

    Args:
        model: the network; a copy is worked on.
        data: a mapping with ``train`` and, where there are such, ``validation``, ``test`` and ``class_names``, or a
            :class:`autocompress.data.task.TaskData`. A split is a torch Dataset of (input, label), a pair of arrays or
            tensors, or ``{"inputs": ..., "labels": ...}``; docs/guide.md says more.
        budget: total time of the run, such as ``"30m"`` or seconds.
        trials: total number of trials; with ``budget``, whatever comes first.
        limits: the keys of ``[limits]``, such as ``{"max_accuracy_drop": 1.0, "min_speedup": 3.0}``.
        out: the run's folder, whose name the study has.
        seed: of everything random.
        train_base: train the network on the data before (``baseline = {"steps": ...}``).
        loss: (outputs, targets) -> scalar tensor, for another task than classification.
        metric: (outputs, targets) -> number of which more is better, instead of accuracy.
        quiet: print nothing.
        sections: ``study``, ``baseline``, ``training``, ``space``, ``objective`` and ``target`` of a study file, such as
            ``space={"sparsity": [0.0, 0.5]}`` or ``training={"steps": 500}``.

    Raises:
        UserError: the input is wrong; nothing is left behind.
        StudyFailed: not one candidate could be made.
    """
    config = _config(model, Path(out), budget, trials, limits, seed, sections)
    inputs = _inputs(config, model, data, train_base, loss, metric)
    with _watcher(config, quiet) as watcher:
        return Results(run_search(config, Path(out), watcher, inputs=inputs))


def _config(
    model: nn.Module,
    out: Path,
    budget: str | float | None,
    trials: int | None,
    limits: Mapping[str, Any] | None,
    seed: int,
    sections: Mapping[str, Mapping[str, Any]],
) -> StudyConfig:
    if "task" in sections:
        raise ConfigError("search(): a task is given by its functions; got a section task; use loss and metric")
    if "train" in sections.get("baseline", {}):
        raise ConfigError("search(): one argument says whether the base is trained; got baseline.train; use train_base")
    study = {"name": out.name, "timeout": budget, "trials": trials, "seed": seed} | dict(sections.get("study", {}))
    # the digest tells a run of another network apart
    source = {"source": LIVE, "arguments": {"class": type(model).__name__, "weights": weights_digest(model)}}
    given: dict[str, dict[str, Any]] = {"model": source, "data": {"source": LIVE}, "limits": dict(limits or {})}
    merged = given | {name: given.get(name, {}) | dict(section) for name, section in sections.items()}
    try:
        return StudyConfig.model_validate(merged | {"study": study})
    except ValidationError as error:
        raise ConfigError(f"search(): {first_problem(error)}") from error


def _inputs(
    config: StudyConfig,
    model: nn.Module,
    data: Any,
    train_base: bool,
    loss: Callable[[Tensor, Tensor], Tensor] | None,
    metric: Callable[[Tensor, Tensor], float] | None,
) -> Inputs:
    torch.set_num_threads(training_threads(config))
    torch.manual_seed(config.study.seed)
    task = given_task(data, "data", config.data, config.study.seed, classification=loss is None)
    check_finite(model, "the model")
    space = None
    if config.space.model_space is not None:
        arguments = {"num_classes": len(task.class_names)} | config.space.model_space_arguments
        space = load_space(config.space.model_space, arguments)
    task = replace(task, loss=loss, metric=metric)
    return Inputs(config, task, fit_together(copy.deepcopy(model), task), space, train_base)


def _watcher(config: StudyConfig, quiet: bool) -> AbstractContextManager[Watcher]:
    return nullcontext(Silent()) if quiet else watcher_for(Console(), config)
