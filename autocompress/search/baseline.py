"""The uncompressed model: loaded or trained, analysed, exported and measured; the yardstick of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from autocompress.analysis import analyse
from autocompress.candidate import Accuracy, Latency, Measurement
from autocompress.compression.distillation import (
    Acceleration,
    Schedule,
    Teacher,
    fastest_acceleration,
    train_,
)
from autocompress.config import StudyConfig, TargetSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData
from autocompress.deploy.machine_lock import training_batch
from autocompress.deploy.measure import compare_hits, measure_bytes
from autocompress.deploy.timing import time_latency
from autocompress.errors import DataError, ModelError, RunError, TrialFailed, first_line
from autocompress.models import ModelSpace, load_model, load_space, load_weights, weights_digest
from autocompress.pipeline import Bench, build_network, draft, finish, float_state, parity, split_hits
from autocompress.plan import DistillationSpec, Plan
from autocompress.search.events import Watcher
from autocompress.search.run_folder import (
    RunFolder,
    belongs,
    read_baseline,
    write_json,
    write_study,
    write_task,
)
from autocompress.search.workers import exclusive
from autocompress.stage_clock import StageClock

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


def load_inputs(config: StudyConfig) -> Inputs:
    """Load data, model, weights and model space, and run one batch through the model.

    Raises:
        UserError: any of them is missing, broken or does not fit.
    """
    torch.set_num_threads(training_threads(config))
    torch.manual_seed(config.study.seed)
    data = load_data(config.data, config.study.seed)
    base = load_model(config.model, len(data.class_names))
    if config.model.weights is not None:
        load_weights(base, config.model.weights)
    base.eval()
    _check_fit(base, data)
    space = None
    if config.space.model_space is not None:
        space = load_space(
            config.space.model_space,
            {"num_classes": len(data.class_names)} | config.space.model_space_arguments,
        )
    return Inputs(config, data, base, space)


def training_threads(config: StudyConfig) -> int:
    """Threads for training and evaluation: as set, else all cores."""
    return config.target.training_threads or len(os.sched_getaffinity(0))


def _check_fit(base: nn.Module, data: TaskData) -> None:
    try:
        with torch.no_grad():
            logits = base(*data.example_inputs(2))
    except Exception as error:
        raise ModelError(
            f"the model must take the data; {[list(x.shape) for x in data.example_inputs(2)]} gives "
            f"{type(error).__name__}: {first_line(error)}; check image_size, channels and the model's arguments"
        ) from error
    classes = len(data.class_names)
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [2, classes]:
        raise DataError(
            f"the model's output has one column per class; it is {shape} for {classes} classes; check the model's arguments"
        )


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
    try:
        measure_baseline(preparing, inputs, watcher)
        write_study(preparing, inputs.config)
        preparing.root.replace(run.root)
    finally:
        shutil.rmtree(preparing.root, ignore_errors=True)


def measure_baseline(run: RunFolder, inputs: Inputs, watcher: Watcher) -> None:
    started = time.perf_counter()
    config, data = inputs.config, inputs.data
    settings = config.training
    schedule = Schedule(
        steps=config.baseline.steps,
        learning_rate=config.baseline.learning_rate,
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        seed=config.study.seed,
    )
    acceleration = fastest_acceleration(inputs.base, data, schedule)
    if config.model.weights is None:
        watcher.note(f"training the base for {schedule.steps} steps")
        trained = replace(schedule, acceleration=acceleration, each_batch=training_batch)
        train_(inputs.base, data, None, DistillationSpec(), trained, settings.views)
    inputs.base.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_file(float_state(inputs.base), run.baseline / "weights.safetensors")
    watcher.note("exporting and measuring the base")
    bench = Bench(inputs.base, data, settings, 1, each_batch=training_batch, threads=training_threads(config))
    measurement = _export_and_measure(run, bench, config.target)
    _check_better_than_chance(measurement, data)
    watcher.note("looking for blocks, channel groups and layers")
    rows = torch.arange(min(ANALYSIS_EXAMPLES, len(data.calibration)))
    analysis = analyse(inputs.base, data.model_inputs(data.calibration, rows))
    write_json(run.baseline / "measurement.json", measurement)
    write_json(run.baseline / "analysis.json", analysis)
    keep_task(run, data)
    facts = environment(config, acceleration) | {"baseline_s": round(time.perf_counter() - started, 3)}
    write_json(run.baseline / "facts.json", facts)


def keep_task(run: RunFolder, data: TaskData) -> None:
    """Keep class names, preprocessing and a few validation examples with the run, for exports."""
    # spread over the split, whose rows may be sorted by class
    rows = torch.linspace(0, len(data.validation) - 1, min(REFERENCE_EXAMPLES, len(data.validation))).long()
    task = {
        "class_names": data.class_names,
        "preprocessing": data.preprocessing,
        "input_names": data.input_names,
    }
    write_task(run, task, [x.numpy() for x in data.model_inputs(data.validation, rows)])


def _export_and_measure(run: RunFolder, bench: Bench, target: TargetSection) -> Measurement:
    path = run.baseline / "model.onnx"
    plan, clock = Plan(), StageClock()
    try:
        unfinished = draft(bench, build_network(bench, plan), plan, path, clock)
        deployable = finish(bench, unfinished, plan, path, run.baseline / "unused", clock)
        (run.baseline / "unused").unlink()
        agreement = parity(bench, path, deployable, plan)
        own = split_hits(bench, path, bench.data.validation)
    except TrialFailed as error:
        raise ModelError(
            f"the base must survive its export; {error.kind}: {error}; see the limits in docs/guide.md"
        ) from error
    np.save(run.baseline / "validation_hits.npy", own)
    figures = {
        "latency": measure_latency(path, path, bench.data, target),
        "parity": agreement,
        "validation": compare_hits(own, own),
    }
    return measure_bytes(path).model_copy(update=figures)


def measure_latency(candidate: Path, baseline: Path, data: TaskData, target: TargetSection) -> Latency:
    """Time a file against the baseline on inputs of the target's batch size."""
    example = data.example_inputs(1)
    inputs = [
        (name, (target.batch_size, *x.shape[1:]), str(x.numpy().dtype))
        for name, x in zip(data.input_names, example, strict=True)
    ]
    return time_latency(candidate, baseline, inputs, target.threads)


def _check_better_than_chance(measurement: Measurement, data: TaskData) -> None:
    assert measurement.validation is not None
    chance = float(data.validation.labels.bincount().max()) / len(data.validation)
    low, _ = measurement.validation.interval()
    if low < min(LEAST_TIMES_CHANCE * chance, (1 + chance) / 2):
        raise ModelError(
            f"the base must be far better than chance; its validation accuracy is {measurement.validation.fraction:.2%} "
            f"and the largest class has {chance:.2%}; check weights, normalisation (mean, std) and the order of classes"
        )


def test_hits(run: RunFolder, bench: Bench) -> NDArray[np.bool_]:
    """The baseline's hits on the test split, computed at the first call of a run."""
    path = run.baseline / "test_hits.npy"
    if not path.is_file():
        own = split_hits(bench, run.baseline / "model.onnx", bench.data.test)
        np.save(path, own)
        measurement = read_baseline(run).model_copy(update={"test": compare_hits(own, own)})
        write_json(run.baseline / "measurement.json", measurement)
    return np.asarray(np.load(path, allow_pickle=False))


def validation_hits(run: RunFolder) -> NDArray[np.bool_]:
    """The baseline's hits on the validation split."""
    return np.asarray(np.load(run.baseline / "validation_hits.npy", allow_pickle=False))


def paired_accuracy(own: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Accuracy:
    """Accuracy paired with the baseline's.

    Raises:
        DataError: the split is not the one that the baseline saw.
    """
    if own.shape != baseline.shape:
        raise DataError(
            f"the data must be those of the run; the split has {len(own)} examples and had {len(baseline)}; restore the data"
        )
    return compare_hits(own, baseline)


def restore_base(run: RunFolder, inputs: Inputs) -> str:
    """Put the run's base weights into the model (it may have been trained); returns their digest."""
    inputs.base.load_state_dict(load_file(run.baseline / "weights.safetensors"))
    inputs.base.eval()
    return weights_digest(inputs.base)


def make_bench(run: RunFolder, inputs: Inputs, facts: dict[str, Any]) -> Bench:
    """Everything the trials share, with the base as the teacher."""
    config = inputs.config
    acceleration = Acceleration(**facts["acceleration"])
    return Bench(
        base=inputs.base,
        data=inputs.data,
        training=config.training,
        channel_multiple=config.space.channel_multiple,
        space=inputs.space,
        teacher=Teacher(inputs.base, inputs.data, config.training.views, acceleration),
        acceleration=acceleration,
        each_batch=training_batch,
        threads=training_threads(config),
    )


def environment(config: StudyConfig, acceleration: Acceleration) -> dict[str, Any]:
    """Facts of the machine and of how latency is measured, for the report."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(),
        "cpu_features": cpu_features(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "target": config.target.model_dump(mode="json"),
        "training_threads": training_threads(config),
        "acceleration": {"bfloat16": acceleration.bfloat16, "channels_last": acceleration.channels_last},
    }


def cpu_model() -> str:
    """Processor name, as the system tells it."""
    return _cpu_line("model name") or platform.processor() or "unknown"


def cpu_features() -> list[str]:
    """Instruction sets that decide how fast integer kernels are."""
    flags = set(_cpu_line("flags").split())
    return [
        name
        for name in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
        if name in flags
    ]


def _cpu_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
