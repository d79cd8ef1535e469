"""Arrays in memory -> a task: what ``npz:``, a user's function and a saved table of numbers have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.augmentation import image_augmentation
from autocompress.data.checks import check_agreement, check_finite
from autocompress.data.images import image_task, normalisation, normalise
from autocompress.data.labels import class_numbers, numbered_names
from autocompress.data.splits import Splits, complete, draw_calibration
from autocompress.data.task import Split, TaskData, Tensors
from autocompress.errors import DataError
from autocompress.reference import one_line

SINGLE_INPUT = "input"
_IMAGE_CHANNELS = (1, 3, 4)
_IMAGE_DIMENSIONS = 4
_KEPT_TYPES = (torch.uint8, torch.int32, torch.int64, torch.float32)

Array = NDArray[Any] | Tensor | Sequence[Any]


@dataclass(frozen=True)
class Arrays:
    """One split as a source gives it: inputs (n, ...) by name, and labels or targets (n, ...)."""

    inputs: Mapping[str, Array]
    labels: Array


def array_task(
    given: Mapping[str, Arrays],
    by_name: bool,
    class_names: Sequence[str] | None,
    config: DataSection,
    seed: int,
    classification: bool,
) -> TaskData:
    """The task of these arrays.

    Floats become float32 and integers stay integers, but for a single input of uint8 in three or four
    dimensions, (n, height, width) or (n, channels, height, width): images, whose pixels are divided by 255.

    Args:
        given: ``train``, and ``validation`` and ``test`` where the source has them; else they are cut.
        by_name: the model takes its inputs by their names.
        class_names: by label; None: "0", "1", ...
        config: fractions, normalisation, augmentation, number of calibration examples.
        seed: of cut, calibration and augmentation.
        classification: labels are class numbers 0...k-1; else targets of any shape, kept as they are.

    Raises:
        DataError: arrays that are no numbers, do not fit each other or hold NaN; labels that are no class
            numbers; a class without examples in train or validation; options for images where there are none.
    """
    names = tuple(given["train"].inputs)
    splits, class_names = _splits(given, names, class_names, classification)
    whole = complete(splits, class_names, config, seed)
    check_finite(whole, names)
    images = whole.train.inputs[0]
    if len(names) == 1 and images.dtype == torch.uint8 and images.ndim == _IMAGE_DIMENSIONS:
        return image_task(whole, class_names, config, seed, {"channels": images.shape[1]}, names[0], by_name)
    return _plain_task(whole, names, by_name, class_names, config, seed)


def _splits(
    given: Mapping[str, Arrays], names: Sequence[str], class_names: Sequence[str] | None, classification: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    for split, arrays in given.items():
        if tuple(sorted(arrays.inputs)) != tuple(sorted(names)):
            raise DataError(
                f"all splits have the same inputs; train has {', '.join(names)}, {split} has "
                f"{', '.join(arrays.inputs) or 'none'}; give each split all of them"
            )
    splits = {split: _split(arrays, names, split, classification) for split, arrays in given.items()}
    check_agreement(splits, names)
    if not classification:
        return splits, ()
    return splits, numbered_names({split: ours.labels for split, ours in splits.items()}, class_names)


def _split(arrays: Arrays, names: Sequence[str], split: str, classification: bool) -> Split:
    inputs = tuple(_tensor(arrays.inputs[name], f"{name} of {split}") for name in names)
    if len(inputs) == 1:
        inputs = (_with_channels(inputs[0], names[0]),)
    elif any(x.dtype == torch.uint8 and x.ndim >= _IMAGE_DIMENSIONS - 1 for x in inputs):
        raise DataError("images of uint8 are the only input; here they are one of several; give them as float32")
    else:
        inputs = tuple(x.long() if x.dtype == torch.uint8 else x for x in inputs)
    if classification:
        labels = class_numbers(_array(arrays.labels, f"the labels of {split}"), split)
    else:
        labels = _tensor(arrays.labels, f"the targets of {split}")
    for name, x in zip(names, inputs, strict=True):
        if x.ndim == 0 or labels.ndim == 0 or len(x) != len(labels):
            raise DataError(
                f"inputs and labels have one row per example; in {split} {name} has shape {list(x.shape)}, the labels "
                f"{list(labels.shape)}; give as many of each"
            )
    return Split(inputs, labels)


def _with_channels(x: Tensor, name: str) -> Tensor:
    """Images get their axis of channels; uint8 of other dimensions become int64."""
    if x.dtype != torch.uint8:
        return x
    if x.ndim == _IMAGE_DIMENSIONS - 1:
        return x[:, None]
    if x.ndim == _IMAGE_DIMENSIONS and x.shape[1] not in _IMAGE_CHANNELS:
        raise DataError(
            f"images of uint8 are (examples, channels, height, width) with 1, 3 or 4 channels; {name} is "
            f"{list(x.shape)}; transpose it"
        )
    return x if x.ndim == _IMAGE_DIMENSIONS else x.long()


def _array(value: Array, what: str) -> NDArray[Any]:
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of several lengths; a type that numpy has not
        raise DataError(
            f"inputs and labels are arrays or tensors; {what} cannot become one: {one_line(error)}; convert them"
        ) from error


def _tensor(value: Array, what: str) -> Tensor:
    """float32, uint8, int32 or int64 on the CPU."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        array = _array(value, what)
        if array.dtype.kind not in "iufbc":
            raise DataError(f"inputs and targets are numbers; {what} has type {array.dtype}; encode it as numbers")
        native = np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):  # infinities are refused by name
            tensor = torch.from_numpy(np.require(array, native, ["C", "W"]))
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise DataError(
            f"inputs and targets are integers or floats; {what} has type "
            f"{str(tensor.dtype).removeprefix('torch.')}; convert it to int64 or float32"
        )
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    return tensor if tensor.dtype in _KEPT_TYPES else tensor.to(torch.int64)


def _plain_task(
    splits: Splits, names: tuple[str, ...], by_name: bool, class_names: tuple[str, ...], config: DataSection, seed: int
) -> TaskData:
    inputs = splits.train.inputs
    one_map = len(names) == 1 and inputs[0].ndim == _IMAGE_DIMENSIONS
    if not one_map and config.augment != "none":
        raise DataError(f"data.augment is for one input of images; here are {_outline(names, inputs)}; remove it")
    if config.mean is not None and not (one_map and inputs[0].is_floating_point()):
        raise DataError(f"data.mean is for one input of images; here are {_outline(names, inputs)}; remove it")
    facts: dict[str, Any] = {"inputs": {n: _facts(x) for n, x in zip(names, inputs, strict=True)}}
    prepare: Callable[[Tensors], Tensors] = _as_stored
    if config.mean is not None and config.std is not None:
        mean, std = normalisation(config, inputs[0].shape[1])
        prepare = normalise(mean, std, divide_by=1)
        facts |= {"layout": "NCHW", "mean": list(mean), "std": list(std)}
    return TaskData(
        train=splits.train,
        calibration=draw_calibration(splits.train, config.calibration_examples, seed),
        validation=splits.validation,
        test=splits.test,
        class_names=class_names,
        input_names=names,
        preprocessing=facts,
        prepare=prepare,
        augment=image_augmentation(config.augment, config.augment_padding, seed),
        by_name=by_name,
    )


def _as_stored(inputs: Tensors) -> Tensors:
    return inputs


def _facts(x: Tensor) -> dict[str, Any]:
    return {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape[1:])}


def _outline(names: Sequence[str], inputs: Tensors) -> str:
    shown = (f"{name} {list(x.shape[1:])} of {_facts(x)['dtype']}" for name, x in zip(names, inputs, strict=True))
    return ", ".join(shown)
