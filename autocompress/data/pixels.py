"""Decoded images of a data set -> stored images: uint8, one size, one number of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from autocompress.errors import DataError

_GREY = 2  # dimensions of an image without colours
_GREY_MODES = ("1", "L", "LA")
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL clips them when it makes 8 bits of them

Pixels = NDArray[np.uint8]


def pixels(image: object, size: int | None) -> Pixels:
    """(height, width, 3) of a PIL image, or (height, width) of one that has no colours by its mode.

    Args:
        image: what the data set gives.
        size: side of the square it is resized to (bilinear); None: it keeps its size.

    Raises:
        DataError: no PIL image, or one of more than 8 bits per channel.
    """
    if not isinstance(image, Image.Image):
        raise DataError(
            f"examples are images; the data set has {type(image).__name__}; choose a set of images for classification"
        )
    if image.mode in _WIDE_MODES:
        raise DataError(f"images have 8 bits per channel; one has PIL's mode {image.mode}; convert them to 8 bits")
    image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    return np.asarray(image if size is None else image.resize((size, size), Image.Resampling.BILINEAR))


def stack_splits(images: Mapping[str, Sequence[Pixels]]) -> dict[str, torch.Tensor]:
    """(n, channels, height, width) of uint8 for each split.

    One channel, where no image of any split has colours; else three, which are equal for those that have none.

    Raises:
        DataError: a split without images, or images of several sizes.
    """
    for split, some in images.items():
        if not some:
            raise DataError(f"each split has examples; {split} has none; add some or correct the source")
    first = images["train"][0].shape[:2]
    grey = all(image.ndim == _GREY for some in images.values() for image in some)
    return {split: _stack(some, 1 if grey else 3, first, split) for split, some in images.items()}


def _stack(images: Sequence[Pixels], channels: int, size: tuple[int, ...], split: str) -> torch.Tensor:
    result = np.empty((len(images), channels, *size), dtype=np.uint8)
    for number, image in enumerate(images):
        if image.shape[:2] != size:
            raise DataError(
                f"without data.image_size all images have one size; example {number} of {split} is "
                f"{_times(image.shape)}, the first of train {_times(size)}; set data.image_size"
            )
        result[number] = image if image.ndim == _GREY else image.transpose(2, 0, 1)
    return torch.from_numpy(result)


def _times(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
