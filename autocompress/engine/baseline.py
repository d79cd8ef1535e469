"""The uncompressed model: loaded or trained, analysed, exported and measured; the yardstick of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import nn

from autocompress.adapter import adapt, check_fit
from autocompress.analysis import Analysis, analyse
from autocompress.candidate import Latency, Measurement
from autocompress.compression.distillation import (
    Acceleration,
    Schedule,
    Teacher,
    fastest_acceleration,
    train_,
)
from autocompress.compression.intermediate import Points
from autocompress.config import StudyConfig, TargetSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData
from autocompress.deploy.machine_lock import training_batch
from autocompress.deploy.measure import measure_bytes
from autocompress.deploy.processor import decisive_instruction_sets, processor_model
from autocompress.deploy.saturation import SATURATION, saturates
from autocompress.deploy.timing import time_latency
from autocompress.engine.events import Watcher
from autocompress.engine.kept_answers import answers_folder, kept_answers
from autocompress.engine.run_folder import (
    RunFolder,
    belongs,
    of_baseline,
    read_analysis,
    read_baseline,
    write_json,
    write_study,
    write_task,
)
from autocompress.errors import ConfigError, ModelError, RunError, TrialFailed, first_line
from autocompress.file_lock import exclusive
from autocompress.layers import call, trace
from autocompress.models import ModelSpace, load_base, load_space, tokenizer_folder, weights_digest
from autocompress.pipeline import (
    Bench,
    answers,
    build_network,
    compare,
    draft,
    faster_teacher,
    finish,
    float_state,
    parity,
    score,
)
from autocompress.plan import DistillationSpec, Plan
from autocompress.reference import load_callable
from autocompress.stage_clock import StageClock
from autocompress.whole_file import written_whole

KEPT_BASES = ".bases"
"""Beside the run folders: bases that were trained, for later runs of the same data and settings."""

SATURATES = "integer_kernels_saturate"
"""Among a run's facts: whether 8-bit weights saturate the integer kernels of its machine."""

ANALYSIS_EXAMPLES = 256
REFERENCE_EXAMPLES = 8
LEAST_TIMES_CHANCE = 1.5
_PACKAGES = ("autocompress", "torch", "onnxruntime", "onnx", "optuna", "torch-pruning", "nni")


@dataclass(frozen=True)
class Inputs:
    """What the user brought, loaded and found to fit together."""

    config: StudyConfig
    data: TaskData
    base: nn.Module
    space: ModelSpace | None
    train_base: bool = True


def load_inputs(config: StudyConfig) -> Inputs:
    """Load data, model, weights and model space, and run one batch through the model.

    Raises:
        UserError: any of them is missing, broken or does not fit.
    """
    torch.set_num_threads(training_threads(config))
    torch.manual_seed(config.study.seed)
    data = load_task(config)
    torch.manual_seed(config.study.seed)
    loaded = load_base(config.model, len(data.class_names))
    base = fit_together(loaded.module, data)
    space = None
    if config.space.model_space is not None:
        space = load_space(
            config.space.model_space,
            {"num_classes": len(data.class_names)} | config.space.model_space_arguments,
        )
    train = config.baseline.train
    return Inputs(config, data, base, space, loaded.pretrained != "whole" if train is None else train)


def fit_together(model: nn.Module, data: TaskData) -> nn.Module:
    """The model as it takes the data's inputs by position, tried on the first examples with loss and metric.

    Raises:
        UserError: model, data, loss or metric do not fit each other.
    """
    base = adapt(model, data.input_names, data.by_name, data.example_inputs(2)).eval()
    check_fit(base, data)
    _check_task(base, data)
    return base


def load_task(config: StudyConfig) -> TaskData:
    """The data of a study, with the functions of ``[task]``.

    Raises:
        UserError: data or functions cannot be loaded.
    """
    section, task = config.data, config.task
    if section.tokenizer is None:
        section = section.model_copy(update={"tokenizer": tokenizer_folder(config.model)})
    data = load_data(section, config.study.seed, classification=task.loss is None)
    loss = None if task.loss is None else load_callable(task.loss, ConfigError, "the loss")
    metric = None if task.metric is None else load_callable(task.metric, ConfigError, "the metric")
    return replace(data, loss=loss, metric=metric)


def _check_task(base: nn.Module, data: TaskData) -> None:
    """Try loss and metric on the first examples."""
    if data.loss is not None and data.metric is None:
        raise ConfigError("a task with a loss of its own is measured by its own metric; task.metric is missing; add it")
    rows = torch.arange(min(8, len(data.validation)))
    targets = data.validation.labels[rows]
    with torch.no_grad():
        outputs = call(base, data.model_inputs(data.validation, rows))
    if data.loss is not None:
        name = getattr(data.loss, "__name__", "task.loss")
        try:
            value = data.loss(outputs, targets)
            finite = value.dim() == 0 and bool(torch.isfinite(value))
        except Exception as error:
            raise ModelError(
                f"a loss takes (outputs, targets); {name} raised {type(error).__name__}: {first_line(error)}; "
                f"outputs are {list(outputs.shape)}, targets {list(targets.shape)}; correct task.loss"
            ) from error
        if not finite:
            raise ModelError(f"a loss is a finite scalar tensor; {name} gave {value}; correct task.loss")
    if data.metric is not None:
        score(data, outputs.numpy(), targets)


def training_threads(config: StudyConfig) -> int:
    """Threads for training and evaluation: as set, else all cores."""
    return config.target.training_threads or len(os.sched_getaffinity(0))


def ensure_run(root: Path, inputs: Inputs, watcher: Watcher) -> RunFolder:
    """Open the run folder, or make it with its baseline; another process that makes it is waited for.

    The folder appears only when the baseline is complete.

    Raises:
        RunError: the folder belongs to another study, or is no run.
    """
    run = RunFolder(root)
    made = [parent for parent in root.parents if not parent.exists()]
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = root.parent / f".{root.name}.lock"
    try:
        with exclusive(lock):
            if root.exists():
                _check_run(run, inputs.config)
            else:
                _make_run(run, inputs, watcher)
    except BaseException:
        if not root.exists():
            lock.unlink(missing_ok=True)
            for parent in made:
                _remove_if_empty(parent)
        raise
    return run


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _check_run(run: RunFolder, config: StudyConfig) -> None:
    if not run.study_file.is_file():
        raise RunError(
            f"a run folder is made by a search; {run.root} exists and has no study.toml; choose another with --out"
        )
    difference = belongs(run, config)
    if difference:
        raise RunError(
            f"a run folder belongs to one study; in {run.root} {difference}; choose another with --out, or rename the study"
        )


def _make_run(run: RunFolder, inputs: Inputs, watcher: Watcher) -> None:
    preparing = RunFolder(run.root.parent / f".{run.root.name}.preparing")
    shutil.rmtree(preparing.root, ignore_errors=True)
    preparing.baseline.mkdir(parents=True)
    kept = run.root.parent / KEPT_BASES / f"{_training_digest(inputs)}.safetensors" if inputs.train_base else None
    try:
        measure_baseline(preparing, inputs, watcher, kept)
        write_study(preparing, inputs.config)
        preparing.root.replace(run.root)
        if kept is not None and not kept.is_file():
            _keep(run.baseline / "weights.safetensors", kept)
    finally:
        shutil.rmtree(preparing.root, ignore_errors=True)


def _keep(weights: Path, kept: Path) -> None:
    kept.parent.mkdir(exist_ok=True)
    with written_whole(kept) as file:
        file.write(weights.read_bytes())


def measure_baseline(run: RunFolder, inputs: Inputs, watcher: Watcher, kept: Path | None = None) -> None:
    """Train the base where it is to be trained, export and measure it, and look for what a plan can change.

    Args:
        kept: where an earlier run may have kept the base, trained from the same start, data and settings.

    Raises:
        ModelError: the base does not survive its export, is no better than chance, or cannot be changed.
    """
    started = time.perf_counter()
    config, data = inputs.config, inputs.data
    settings = config.training
    trace(inputs.base.eval(), data.example_inputs(2), data.axes)  # before minutes of training
    if not list(inputs.base.parameters()):
        raise _nothing_to_decide("")
    schedule = Schedule(
        steps=config.baseline.steps,
        learning_rate=config.baseline.learning_rate,
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        seed=config.study.seed,
        optimizer=settings.optimizer,
    )
    acceleration = fastest_acceleration(inputs.base, data, schedule)
    if inputs.train_base:
        trained = replace(schedule, acceleration=acceleration, each_batch=training_batch)
        _train_base_(inputs, trained, watcher, kept)
    inputs.base.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_file(float_state(inputs.base), run.baseline / "weights.safetensors")
    watcher.note("exporting and measuring the base")
    bench = Bench(
        inputs.base,
        data,
        settings,
        1,
        each_batch=training_batch,
        threads=training_threads(config),
        deployed_batch=config.target.batch_size,
    )
    measurement = _export_and_measure(run, bench, config.target)
    if data.metric is None:
        _check_better_than_chance(measurement, data)
    if saturates():
        watcher.note(f"{SATURATION}, so w8a8 is done as w7a8")
    watcher.note("looking for blocks, channel groups and layers")
    rows = torch.arange(min(ANALYSIS_EXAMPLES, len(data.calibration)))
    calibration = data.model_inputs(data.calibration, rows)
    analysis = analyse(inputs.base, calibration, data.axes, classification=data.loss is None)
    if analysis.decides_nothing and inputs.space is None:
        raise _nothing_to_decide("; ".join(f"{name}: {why}" for name, why in list(analysis.left_out.items())[:3]))
    write_json(run.baseline / "measurement.json", measurement)
    write_json(run.baseline / "analysis.json", analysis)
    keep_task(run, data)
    facts = environment(config, acceleration) | {"baseline_s": round(time.perf_counter() - started, 3)}
    write_json(run.baseline / "facts.json", facts)


def _nothing_to_decide(reasons: str) -> ModelError:
    return ModelError(
        f"a search needs something to decide; the model has no block, channel group or layer that a plan can change "
        f"({reasons or 'it has no weights'}); give a model_space or another model"
    )


def _train_base_(inputs: Inputs, schedule: Schedule, watcher: Watcher, kept: Path | None) -> None:
    """Train the base in place, or take what an earlier run kept of the very same training."""
    state = None if kept is None else _kept_base(kept, watcher)
    if state is not None:
        watcher.note(f"taking the trained base from {kept}")
        inputs.base.load_state_dict(state)
        return
    watcher.note(f"training the base for {schedule.steps} steps")
    train_(inputs.base, inputs.data, None, DistillationSpec(), schedule, inputs.config.training.views)


def _kept_base(kept: Path, watcher: Watcher) -> dict[str, torch.Tensor] | None:
    """What an earlier run kept; None where there is nothing, or nothing that can be read, which then makes room."""
    if not kept.is_file():
        return None
    try:
        state: dict[str, torch.Tensor] = load_file(kept)
    except SafetensorError:
        watcher.note(f"{kept} is damaged; it is made anew")
        kept.unlink()
        return None
    return state


def _training_digest(inputs: Inputs) -> str:
    """What a trained base depends on: start, data and settings."""
    config, digest = inputs.config, hashlib.sha256(weights_digest(inputs.base).encode())
    training = {key: getattr(config.training, key) for key in ("batch_size", "weight_decay", "optimizer", "views")}
    settings: list[Any] = [config.task.loss, config.baseline.model_dump(), training, config.study.seed]
    settings += [config.data.augment, config.data.augment_padding, config.data.mean, config.data.std]
    digest.update(repr(settings).encode())
    digest.update(inputs.data.train_digest.encode())
    return digest.hexdigest()[:32]


def keep_task(run: RunFolder, data: TaskData) -> None:
    """Keep class names, preprocessing and a few validation examples with the run, for exports."""
    # spread over the split, whose rows may be sorted by class
    rows = torch.linspace(0, len(data.validation) - 1, min(REFERENCE_EXAMPLES, len(data.validation))).long()
    task = {
        "class_names": data.class_names,
        "preprocessing": data.preprocessing,
        "input_names": data.input_names,
        "free_axes": {name: dict(axes) for name, axes in data.free_axes.items()},
    }
    write_task(run, task, [x.numpy() for x in data.model_inputs(data.validation, rows)])


def _export_and_measure(run: RunFolder, bench: Bench, target: TargetSection) -> Measurement:
    path, split = run.baseline / "model.onnx", bench.data.validation
    plan, clock = Plan(), StageClock()
    try:
        unfinished = draft(bench, build_network(bench, plan), plan, path, clock)
        deployable = finish(bench, unfinished, plan, path, run.baseline / "unused", clock)
        (run.baseline / "unused").unlink()
        agreement = parity(bench, path, deployable, plan)
        own = answers(bench, path, split, plan)
    except TrialFailed as error:
        raise ModelError(
            f"the base must survive its export; {error.kind}: {error}; see the limits in docs/guide.md"
        ) from error
    np.save(run.baseline / "validation_answers.npy", own)
    figures = {
        "latency": measure_latency(path, path, bench.data, target),
        "parity": agreement,
        "validation": compare(bench.data, split, own, own),
    }
    return measure_bytes(path).model_copy(update=figures)


def measure_latency(
    candidate: Path, baseline: Path, data: TaskData, target: TargetSection, usual_ms: float | None = None
) -> Latency:
    """Time a file against the baseline on inputs of the target's batch size and sequence length.

    Args:
        usual_ms: what the baseline takes while the machine is quiet, where that is known.
    """
    inputs = []
    for name, x, free in zip(data.input_names, data.example_inputs(1), data.axes, strict=True):
        lengths = [target.sequence_length if axis in free else x.shape[axis] for axis in range(1, x.dim())]
        inputs.append((name, (target.batch_size, *lengths), str(x.numpy().dtype)))
    return time_latency(candidate, baseline, inputs, target.threads, usual_ms)


def _check_better_than_chance(measurement: Measurement, data: TaskData) -> None:
    assert measurement.validation is not None
    chance = float(data.validation.labels.bincount().max()) / len(data.validation)
    low, _ = measurement.validation.interval()
    if low < min(LEAST_TIMES_CHANCE * chance, (1 + chance) / 2):
        raise ModelError(
            f"the base must be far better than chance; its validation accuracy is {measurement.validation.fraction:.2%} "
            f"and the largest class has {chance:.2%}; check weights, normalisation (mean, std) and the order of classes"
        )


def test_answers(run: RunFolder, bench: Bench) -> NDArray[Any]:
    """The baseline's answers on the test split, computed at the first call of a run."""
    path = run.baseline / "test_answers.npy"
    if not path.is_file():
        split = bench.data.test
        own = answers(bench, run.baseline / "model.onnx", split, Plan())
        measurement = read_baseline(run).model_copy(update={"test": compare(bench.data, split, own, own)})
        write_json(run.baseline / "measurement.json", measurement)
        with written_whole(path) as file:  # last: where it is, nothing is done again
            np.save(file, own, allow_pickle=False)
    return of_baseline(run, path.name, _array)


def _array(content: bytes) -> NDArray[Any]:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def validation_answers(run: RunFolder) -> NDArray[Any]:
    """The baseline's answers on the validation split."""
    return of_baseline(run, "validation_answers.npy", _array)


def restore_base(run: RunFolder, inputs: Inputs) -> str:
    """Put the run's base weights into the model (it may have been trained); returns their digest."""
    inputs.base.load_state_dict(of_baseline(run, "weights.safetensors", load))
    inputs.base.eval()
    return weights_digest(inputs.base)


def make_bench(run: RunFolder, inputs: Inputs, facts: dict[str, Any]) -> Bench:
    """Everything the trials share, with the base as the teacher.

    Raises:
        RunError: the run began on a GPU, and there is none.
    """
    config, analysis = inputs.config, read_analysis(run)
    acceleration = Acceleration(**facts["acceleration"])
    if acceleration.device == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"a run trains where it began; {run.root} began on a GPU, and none is here; search again in another folder"
        )
    points = _points(analysis)
    return Bench(
        base=inputs.base,
        data=inputs.data,
        training=config.training,
        channel_multiple=config.space.channel_multiple,
        space=inputs.space,
        teacher=Teacher(
            inputs.base,
            inputs.data,
            config.training.views,
            acceleration,
            points,
            faster_teacher(inputs.base, inputs.data),
            kept_answers(answers_folder(run.baseline, inputs.base, inputs.data, config.training.views, acceleration)),
        ),
        acceleration=acceleration,
        each_batch=training_batch,
        threads=training_threads(config),
        deployed_batch=config.target.batch_size,
        inner=analysis.inner,
    )


def _points(analysis: Analysis) -> Points:
    """Where students look into the base: its longest run of blocks, and its attentions."""
    runs = [run.in_order for run in analysis.runs]
    heads = [width for width in analysis.inner.values() if width.kind == "heads"]
    made = tuple(tuple(producer.weight.rpartition(".")[0] for producer in width.producers) for width in heads)
    return Points(max(runs, key=len, default=()), made)


def environment(config: StudyConfig, acceleration: Acceleration) -> dict[str, Any]:
    """Facts of the machine and of how latency is measured, for the report."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": processor_model(),
        "cpu_features": decisive_instruction_sets(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "target": config.target.model_dump(mode="json"),
        "training_threads": training_threads(config),
        "acceleration": asdict(acceleration),
        SATURATES: saturates(),
    }
