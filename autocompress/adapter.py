"""Models as they come -> models that take tensors by position and return one tensor, as all stages expect."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.data.task import TaskData
from autocompress.errors import DataError, ModelError
from autocompress.reference import one_line

_LOGITS = "logits"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Passing(Enum):
    """How a forward function takes its inputs."""

    BY_POSITION = "by position"
    BY_NAME = "by name"
    AS_DICTIONARY = "as one dictionary"


class Adapted(nn.Module):
    """Takes tensors by position, passes them on as ``model`` takes them, and returns its logits.

    A network with heads for training only (GoogLeNet) is trained as it is deployed (``as_deployed``): its dropout
    and batch norm train, and whatever has modules inside takes the path of evaluation, which is the one that is
    traced, pruned and exported.
    """

    def __init__(
        self, model: nn.Module, input_names: tuple[str, ...], passing: Passing, as_deployed: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names
        self.passing = passing
        self.as_deployed = as_deployed

    def train(self, mode: bool = True) -> Adapted:
        """Set the mode."""
        super().train(mode)
        if mode and self.as_deployed:
            for module in self.model.modules():
                module.training = not any(True for _ in module.children())
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs in the order of ``input_names``, each (n, ...) -> logits (n, ...)."""
        output = one_tensor(_call(self.model, self.input_names, self.passing, inputs))
        assert output is not None  # adapt() has seen one
        return output


def adapt(model: nn.Module, input_names: tuple[str, ...], by_name: bool, example: tuple[Tensor, ...]) -> nn.Module:
    """A model that takes its inputs by position and returns one tensor, in training and in evaluation.

    Nothing is changed, torch's global generator included: a copy is tried.

    Args:
        model: its forward returns a tensor, or a tuple, dictionary or dataclass that has one: ``logits``,
            else the first.
        input_names: of the inputs of the data, in their order.
        by_name: forward takes the inputs by these names, or all as one dictionary with these keys.
        example: a first batch of inputs, each (n, ...).

    Returns:
        The model itself where it does all that already, else an :class:`Adapted` with it.

    Raises:
        ModelError: the model does not take these inputs, or returns no tensor.
    """
    probe = _copy(model).eval()
    passing = _passing(probe, input_names, by_name, example)
    plain = passing is Passing.BY_POSITION
    forms = set()
    for mode in ("evaluation", "training"):
        output = _try(probe.train(mode == "training"), input_names, passing, example)
        if one_tensor(output) is None:
            raise ModelError(
                f"a model returns logits, a tensor; in {mode} {type(model).__name__} returned {_outline(output)}; "
                "return a tensor, or a tuple or dictionary with one"
            )
        plain = plain and isinstance(output, Tensor)
        forms.add(type(output))
    return model if plain else Adapted(model, input_names, passing, as_deployed=len(forms) > 1)


def check_fit(model: nn.Module, data: TaskData) -> None:
    """Run the first examples through the model and look at what comes out.

    Args:
        model: in evaluation mode; takes the inputs by position and returns a tensor.
        data: without class names only the first dimension of the output is known: the batch.

    Raises:
        DataError: the output has not one row per example and one column per class.
        ModelError: the model does not take the inputs, or its outputs are not finite.
    """
    classes = len(data.class_names)
    inputs = data.example_inputs(2 if classes > 2 else 3)  # rows and columns must not be taken for each other
    output = _try(model, data.input_names, Passing.BY_POSITION, inputs)
    rows = len(inputs[0])
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if classes and shape != [rows, classes]:
        raise DataError(
            f"the model's output has one column per class; it is {shape} for {rows} examples of {classes} classes; "
            "check the model's arguments"
        )
    if not isinstance(output, Tensor) or output.shape[:1] != (rows,):
        raise DataError(
            f"the model's output has one row per example; it is {shape} for {rows} examples; "
            "keep the batch as the first dimension"
        )
    if not bool(torch.isfinite(output).all()):
        raise ModelError(
            f"outputs are finite numbers; the model gives NaN or infinity for {shapes(data.input_names, inputs)}; "
            "check its weights and the normalisation of the data"
        )


def one_tensor(output: object) -> Tensor | None:
    """The tensor itself, ``logits`` of a dictionary, named tuple or dataclass, else its first tensor, if any."""
    if isinstance(output, Tensor):
        return output
    values = _entries(output)
    ranked = [values[_LOGITS]] if values.get(_LOGITS) is not None else list(values.values())
    return next((tensor for tensor in map(one_tensor, ranked) if tensor is not None), None)


def shapes(names: Sequence[str], inputs: Sequence[Tensor]) -> str:
    """Inputs in words: ``tokens int64 [2, 24], mask int64 [2, 24]``."""
    return ", ".join(
        f"{name} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in zip(names, inputs, strict=True)
    )


def _entries(output: object) -> dict[object, object]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {}


def _outline(output: object) -> str:
    keys = [str(key) for key in _entries(output)]
    return f"a {type(output).__name__}" + (f" of {', '.join(keys)}" if keys else "")


# Inputs


def _call(model: nn.Module, names: tuple[str, ...], passing: Passing, inputs: tuple[Tensor, ...]) -> Any:
    if passing is Passing.BY_POSITION:
        return model(*inputs)
    named = dict(zip(names, inputs, strict=True))
    return model(**named) if passing is Passing.BY_NAME else model(named)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a model keeps that cannot be copied
        raise ModelError(
            f"a model can be copied; copy.deepcopy of {type(model).__name__} raised {type(error).__name__}: "
            f"{one_line(error)}; keep only modules, parameters, buffers and plain values in it"
        ) from error


def _try(model: nn.Module, names: tuple[str, ...], passing: Passing, inputs: tuple[Tensor, ...]) -> object:
    """What the model returns; in training for two rows or more, which batch norm needs."""
    if model.training and len(inputs[0]) < 2:
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return _call(model, names, passing, tuple(x.clone() for x in inputs))
    except Exception as error:
        raise ModelError(
            f"the model must take the data; {type(model).__name__}, whose forward takes {_taken(model)}, was given "
            f"{shapes(names, inputs)} {passing.value}{' in training' if model.training else ''} and raised "
            f"{type(error).__name__}: {one_line(error)}; check image_size, channels, the model's arguments and its forward"
        ) from error


def _passing(model: nn.Module, names: tuple[str, ...], by_name: bool, example: tuple[Tensor, ...]) -> Passing:
    parameters = _parameters(model)
    if not by_name or parameters is None:
        return Passing.BY_POSITION
    if _takes_dictionary(parameters, names):
        lone = len(names) == 1 and not _works(model, names, Passing.AS_DICTIONARY, example)
        return (
            Passing.BY_POSITION
            if lone and _works(model, names, Passing.BY_POSITION, example)
            else Passing.AS_DICTIONARY
        )
    _check_names(model, parameters, names)
    first = [p.name for p in parameters if p.kind in _BY_POSITION][: len(names)]
    return Passing.BY_POSITION if tuple(first) == names else Passing.BY_NAME


def _works(model: nn.Module, names: tuple[str, ...], passing: Passing, example: tuple[Tensor, ...]) -> bool:
    try:
        _try(model, names, passing, example)
    except ModelError:
        return False
    return True


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    """What forward takes; None where its signature cannot be read, as in compiled code."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None


def _taken(model: nn.Module) -> str:
    return ", ".join(parameter.name for parameter in _parameters(model) or ()) or "what it does not say"


def _takes_dictionary(parameters: Sequence[inspect.Parameter], names: tuple[str, ...]) -> bool:
    """Whether there is nothing to fill but one parameter that is none of the names."""
    required = [p for p in parameters if p.default is p.empty and p.kind in {*_BY_POSITION, *_BY_NAME}]
    strangers = not {p.name for p in parameters} & set(names)
    return strangers and len(required) == 1 and required[0].kind in _BY_POSITION


def _check_names(model: nn.Module, parameters: Sequence[inspect.Parameter], names: tuple[str, ...]) -> None:
    taken = {p.name: p.default is p.empty for p in parameters if p.kind in _BY_NAME}
    unknown = [] if _takes_any_name(model, parameters) else [name for name in names if name not in taken]
    missing = [name for name, required in taken.items() if required and name not in names]
    if unknown or missing:
        problem = f"it does not take {', '.join(unknown)}" if unknown else f"it also needs {', '.join(missing)}"
        raise ModelError(
            f"the model takes the data's inputs by their names; the data have {', '.join(names)} and the forward of "
            f"{type(model).__name__} takes {_taken(model)}: {problem}; give both the same names"
        )


def _takes_any_name(model: nn.Module, parameters: Sequence[inspect.Parameter]) -> bool:
    # The **kwargs of Transformers' networks are for kernels: an input with an unknown name would be lost there.
    if type(model).__module__.startswith("transformers."):
        return False
    return any(p.kind is p.VAR_KEYWORD for p in parameters)
