"""Augmentation of image batches, fixed by (seed, example, view).

The parameters come from a counter-based generator: a hash of the three numbers, with no state. View ``v`` of
an example is therefore the same in every batch, epoch and process, and needs no table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autocompress.data.task import Tensors

Augmentation = Literal["none", "crop", "crop-flip"]
Augment = Callable[[Tensors, Tensor, int], Tensors]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class CropFlip:
    """One decision per image: offsets (n,) of the window in the padded image, and whether it is mirrored."""

    top: Tensor
    left: Tensor
    flip: Tensor


def image_augmentation(kind: Augmentation, padding: int, seed: int) -> Augment:
    """The ``augment`` function of a task whose only input is images (n, channels, height, width).

    Args:
        kind: ``crop`` shifts by up to ``padding`` pixels, ``crop-flip`` also mirrors every other image.
        padding: pixels of zeros, in the stored values, around the image.
        seed: of the generator.
    """

    def augment(inputs: Tensors, indices: Tensor, view: int) -> Tensors:
        (images,) = inputs
        drawn = draw_crop_flip(indices, view, seed, padding, flips=kind == "crop-flip")
        return (crop_flip(images, drawn, padding),)

    def keep(inputs: Tensors, indices: Tensor, view: int) -> Tensors:
        return inputs

    return keep if kind == "none" else augment


def crop_flip(images: Tensor, drawn: CropFlip, padding: int) -> Tensor:
    """Windows of the zero-padded images, mirrored where ``drawn.flip``.

    Args:
        images: (n, channels, height, width), any dtype.
        drawn: offsets in 0...2 * padding; ``padding`` itself gives back the image.
        padding: in pixels.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    column = torch.arange(width)
    column = torch.where(drawn.flip[:, None], width - 1 - column, column) + drawn.left[:, None]
    row = torch.arange(height) + drawn.top[:, None]
    # One gather over flattened pixels: twice as fast as to index windows, six times as by row and column.
    pixel = (row[:, :, None] * (width + 2 * padding) + column[:, None, :]).view(n, 1, height * width)
    flat = padded.view(n, channels, -1).gather(2, pixel.expand(-1, channels, -1))
    return flat.view(n, channels, height, width)


def draw_crop_flip(indices: Tensor, view: int, seed: int, padding: int, flips: bool) -> CropFlip:
    """Offsets uniform in 0...2 * padding and, if ``flips``, a fair coin; (n,) indices -> n decisions."""
    bits = hashed(indices.numpy().astype(np.uint64), view, seed)
    span = np.uint64(2 * padding + 1)
    part = np.uint64(2**24 - 1)  # so wide that the remainder is uniform to 2 padding / 2**24
    top = ((bits & part) % span).astype(np.int64)
    left = (((bits >> np.uint64(24)) & part) % span).astype(np.int64)
    flip = (bits >> np.uint64(63)).astype(np.bool_) & flips
    return CropFlip(torch.from_numpy(top), torch.from_numpy(left), torch.from_numpy(flip))


def hashed(indices: NDArray[np.uint64], view: int, seed: int) -> NDArray[np.uint64]:
    """64 random bits for each index: a step of SplitMix64 (Steele, Lea and Flood 2014) for each number."""
    state = np.zeros_like(indices)
    for word in (np.uint64(seed), np.uint64(view), indices):
        state = _mix(state + _GOLDEN + word)
    return state


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
