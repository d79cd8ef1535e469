"""Study files: TOML -> :class:`StudyConfig`, validated.

Relative paths in a study file are relative to the file; ``{data}`` stands for the data folder, which the
command line (``--data``) and the environment (``AUTOCOMPRESS_DATA``) override.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from autocompress.errors import ConfigError
from autocompress.plan import Precision

DATA_ENVIRONMENT_VARIABLE = "AUTOCOMPRESS_DATA"
_KINDS_WITH_PATHS = ("imagefolder", "text", "npz", "hf")  # KIND:PATH in model.source and data.source
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|h)?\s*$")
_TOML_TYPES = {
    "tuple_type": "this must be a list",
    "dict_type": "this must be a table",
    "model_type": "this must be a table",
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str | float) -> float:
    """Seconds of ``"90s"``, ``"30m"``, ``"1.5h"`` or a plain number of seconds.

    Raises:
        ValueError: not a positive duration.
    """
    match = _DURATION.match(str(text))
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"a duration is a positive number with s, m or h, such as 30m; got {text!r}")
    return seconds


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("a study name has letters, digits, '.', '_' and '-' only and names one folder")
    return name


def _check_duration(text: str | float) -> str | float:
    parse_duration(text)
    return text


def _check_range(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range is [low, high] with low <= high; got {list(pair)}")
    return pair


Duration = Annotated[str | float, AfterValidator(_check_duration)]
Range = Annotated[tuple[float, float], AfterValidator(_check_range)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StudySection(_Section):
    """``[study]``: name, engine, sampler, totals of the run."""

    name: Annotated[str, AfterValidator(_check_name)]
    mode: Literal["pareto", "scalar"] = "pareto"
    engine: Literal["ladder", "plain"] = "ladder"
    sampler: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    trials: Annotated[int, Field(ge=1)] | None = None
    timeout: Duration | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> StudySection:
        if self.trials is None and self.timeout is None:
            raise ValueError("a study needs an end: give trials, timeout or both")
        return self

    @property
    def timeout_s(self) -> float | None:
        """Seconds of search, or None."""
        return None if self.timeout is None else parse_duration(self.timeout)


class ModelSection(_Section):
    """``[model]``: where the base comes from; without weights it is trained first (``[baseline]``)."""

    source: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None


class DataSection(_Section):
    """``[data]``: source, split, and what becomes of an example on its way into the model.

    ``validation`` and ``test`` name further files where each split has its own; without them the splits are
    cut from ``source``. ``validation_longest`` and ``exclude_overlap`` are for texts whose splits share
    sentences.
    """

    source: str
    arguments: dict[str, Any] = Field(default_factory=dict, description="of a function that returns data")
    validation: str | None = None
    test: str | None = None
    text_columns: tuple[str, ...] = ("sentence",)
    label_column: str = "label"
    tokenizer: str | None = Field(default=None, description="a folder; by default the model's")
    max_length: Annotated[int, Field(ge=4)] = 128
    validation_longest: Annotated[int, Field(ge=1, description="examples of validation")] | None = None
    exclude_overlap: Annotated[
        bool, Field(description="leave out train texts that contain a validation text or are contained in one")
    ] = False
    folder: str | None = Field(default=None, description="what {data} stands for")
    image_size: Annotated[int, Field(ge=4, le=2048)] | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    calibration_examples: Annotated[int, Field(ge=16)] = 512
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Literal["none", "crop", "crop-flip"] = "none"
    augment_padding: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> DataSection:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is positive; got {list(self.std)}")
        return self


class TaskSection(_Section):
    """``[task]``: anything but classification with one label per example, by functions of the user's."""

    loss: str | None = Field(default=None, description="module:function, (outputs, targets) -> scalar tensor")
    metric: str | None = Field(default=None, description="module:function, (outputs, targets) -> number; up is good")


class BaselineSection(_Section):
    """``[baseline]``: training of a base that comes without weights for the task.

    ``train`` says whether it is trained; by default it is unless weights for the whole network were loaded.
    """

    train: bool | None = None
    steps: Annotated[int, Field(ge=1)] = 1000
    learning_rate: Annotated[float, Field(gt=0)] = 0.1


class TrainingSection(_Section):
    """``[training]``: budget and optimiser of a candidate."""

    steps: Annotated[int, Field(ge=0, description="of a candidate that inherits the base's weights")] = 300
    random_start_factor: Annotated[
        float, Field(ge=1.0, description="times steps, for a candidate that starts from random weights")
    ] = 2.0
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.015
    random_start_learning_rate: Annotated[float, Field(gt=0)] = 0.15
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    optimizer: Literal["muon", "sgd", "adamw"] = "muon"
    quantized_fraction: Annotated[
        Fraction,
        Field(description="last part of the steps, with batch norm folded and fake quantisation; 600 at most"),
    ] = 0.3
    views: Annotated[
        int, Field(ge=1, description="fixed augmented views of each example; the teacher sees each once")
    ] = 8
    continued_fraction: Annotated[
        Fraction, Field(description="last part of the study, which trains front members on")
    ] = 0.34
    continued_members: Annotated[
        int, Field(ge=1, description="front members in the first round of continued training")
    ] = 4

    def peak_rate(self, family: str) -> float:
        """Learning rate of a training that starts as a family does: from the base's weights, or at random."""
        return self.learning_rate if family == "base" else self.random_start_learning_rate


class SpaceSection(_Section):
    """``[space]``: what a trial decides."""

    base: bool = True
    drop_blocks: bool = True
    model_space: str | None = None
    model_space_arguments: dict[str, Any] = Field(default_factory=dict)
    model_space_sparsity: tuple[Fraction, ...] = (0.0,)
    sparsity: tuple[Fraction, ...] = (0.0, 0.25, 0.5, 0.75)
    head_sparsity: tuple[Fraction, ...] | None = Field(default=None, description="of attentions; as sparsity")
    mlp_sparsity: tuple[Fraction, ...] | None = Field(default=None, description="of hidden units; as sparsity")
    channel_multiple: Annotated[int, Field(ge=1)] = 8
    precision: tuple[Precision, ...] = tuple(p for p in Precision if not p.dynamic and p is not Precision.W7A8)
    alpha: Range = (0.3, 1.0)
    temperature: Range = (1.0, 8.0)
    hint_weight: Range = (0.0, 1.0)
    hidden_weight: Range = (0.0, 0.0)
    relation_weight: Range = (0.0, 0.0)

    @model_validator(mode="after")
    def _decides_something(self) -> SpaceSection:
        if not self.base and self.model_space is None:
            raise ValueError("a space needs a family: base = true, a model_space, or both")
        for name in ("sparsity", "head_sparsity", "mlp_sparsity", "model_space_sparsity", "precision"):
            options = getattr(self, name)
            if options is None:
                continue
            if not options or len(set(options)) != len(options):
                shown = [str(option) for option in options]
                raise ValueError(f"{name} lists at least one option, each once; got {shown}")
        if not 0 <= self.alpha[0] <= self.alpha[1] <= 1:
            raise ValueError(f"alpha lies in [0, 1]; got {list(self.alpha)}")
        if self.temperature[0] <= 0 or min(self.hint_weight[0], self.hidden_weight[0], self.relation_weight[0]) < 0:
            raise ValueError("temperature is positive; hint_weight, hidden_weight and relation_weight not negative")
        return self


class LimitsSection(_Section):
    """``[limits]``: a plan beyond one of bytes or latency is not trained; all become Optuna constraints."""

    max_accuracy_drop: Annotated[float, Field(ge=0, le=100, description="validation points")] | None = None
    max_size_bytes: Annotated[int, Field(gt=0)] | None = None
    max_size_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None


class ObjectiveSection(_Section):
    """``[objective]``: h(s) = alpha f(s) - beta g(s), see docs/objective.md."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.1
    size_weight: Annotated[float, Field(ge=0)] = 0.5
    latency_weight: Annotated[float, Field(ge=0)] = 0.5

    @model_validator(mode="after")
    def _weights_add_up(self) -> ObjectiveSection:
        if self.size_weight + self.latency_weight <= 0:
            raise ValueError("size_weight and latency_weight must not both be 0")
        return self


class TargetSection(_Section):
    """``[target]``: what latency means."""

    runtime: Literal["onnxruntime"] = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 1
    sequence_length: Annotated[int, Field(ge=1, description="of inputs whose length is free")] = 32
    training_threads: Annotated[int, Field(ge=1, le=256)] | None = None


class StudyConfig(_Section):
    """A whole study file."""

    study: StudySection
    model: ModelSection
    data: DataSection
    task: TaskSection = TaskSection()
    baseline: BaselineSection = BaselineSection()
    training: TrainingSection = TrainingSection()
    space: SpaceSection = SpaceSection()
    limits: LimitsSection = LimitsSection()
    objective: ObjectiveSection = ObjectiveSection()
    target: TargetSection = TargetSection()


def load_study(path: Path, data_folder: str | None = None, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Read and validate a study file.

    Args:
        path: the TOML file.
        data_folder: replaces ``[data] folder``; without it the environment's ``AUTOCOMPRESS_DATA`` does.
        overrides: values of ``[study]`` from the command line (``seed``, ``trials``, ``timeout``).

    Raises:
        ConfigError: unreadable file, unknown key (a near one is suggested), wrong type or range.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"a study file must be readable; {path}: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"a study file is TOML; {path}: {error}; correct that place") from error
    if isinstance(raw.get("study"), dict) and overrides:
        raw["study"].update({key: value for key, value in overrides.items() if value is not None})
    try:
        config = StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from error
    return _resolve_paths(config, path.resolve().parent, data_folder)


def first_problem(error: ValidationError) -> str:
    """One line about the first thing that is wrong."""
    problems = error.errors(include_url=False)
    # an unknown key is the likely cause of a missing one
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # A section and a key, then positions in lists; pydantic also names the branches of a union there.
    location = ".".join(str(part) for i, part in enumerate(problem["loc"]) if i < 2 or isinstance(part, int))
    if problem["type"] == "extra_forbidden":
        return _unknown_key(tuple(str(part) for part in problem["loc"]))
    if problem["type"] == "missing":
        return f"{location} is required; add it"
    message = _TOML_TYPES.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    shown = "" if isinstance(problem["input"], dict | BaseModel) else f"; got {problem['input']!r}"
    return f"{location}: {message}{'' if 'got' in message else shown}; correct it"


def _unknown_key(location: tuple[str, ...]) -> str:
    section: type[BaseModel] = StudyConfig
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type)
        section = annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {'.'.join(location)}; {hint}"


def _resolve_paths(config: StudyConfig, base: Path, data_folder: str | None) -> StudyConfig:
    override = data_folder or os.environ.get(DATA_ENVIRONMENT_VARIABLE)
    folder = str(Path(override).absolute()) if override else config.data.folder
    folder = None if folder is None else str((base / folder).resolve())

    def resolve(text: str | None) -> str | None:
        if text is None:
            return None
        if "{data}" in text and folder is None:
            raise ConfigError(
                f"{{data}} needs a data folder; {text!r} has none; "
                f"set data.folder, --data or {DATA_ENVIRONMENT_VARIABLE}"
            )
        return text.replace("{data}", folder or "")

    def resolve_file(text: str | None) -> str | None:
        text = resolve(text)
        is_file = text is not None and ".py:" in text
        return os.path.normpath(base / text) if text is not None and is_file else text

    def resolve_path(text: str | None) -> str | None:
        text = resolve(text)
        return text if text is None or text.startswith("package:") else os.path.normpath(base / text)

    def resolve_source(text: str) -> str | None:
        kind, _, path = (resolve(text) or "").partition(":")
        return f"{kind}:{resolve_path(path)}" if kind in _KINDS_WITH_PATHS and path else resolve_file(text)

    def resolve_model(text: str) -> str | None:
        # hf:NAME may be a model of the hub
        is_hub = text.startswith("hf:") and "{data}" not in text and not (base / text.removeprefix("hf:")).is_dir()
        return text if is_hub else resolve_source(text)

    model = config.model.model_copy(
        update={"source": resolve_model(config.model.source), "weights": resolve_path(config.model.weights)}
    )
    data = config.data.model_copy(
        update={
            "source": resolve_source(config.data.source),
            "validation": resolve_path(config.data.validation),
            "test": resolve_path(config.data.test),
            "tokenizer": resolve_path(config.data.tokenizer),
            "folder": folder,
        }
    )
    task = config.task.model_copy(
        update={"loss": resolve_file(config.task.loss), "metric": resolve_file(config.task.metric)}
    )
    space = config.space.model_copy(update={"model_space": resolve_file(config.space.model_space)})
    return config.model_copy(update={"model": model, "data": data, "task": task, "space": space})


def to_toml(config: StudyConfig) -> str:
    """The resolved study as TOML; reading it again gives the same configuration."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
