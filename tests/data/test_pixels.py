"""Decoded images: channels, sizes and the order of pixels."""

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from autocompress.data.pixels import pixels, stack_splits


def _image(mode: str, size: tuple[int, int] = (5, 4)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.mark.parametrize(
    ("mode", "shape"), [("RGB", (4, 5, 3)), ("P", (4, 5, 3)), ("RGBA", (4, 5, 3)), ("L", (4, 5)), ("1", (4, 5))]
)
def test_only_modes_without_colours_give_grey_pixels(mode: str, shape: tuple[int, ...]) -> None:
    assert pixels(_image(mode), None).shape == shape
    assert pixels(_image(mode), 8).shape == (8, 8, *shape[2:])


def test_pixels_are_those_of_the_image() -> None:
    image = _image("RGB")
    stacked = stack_splits({"train": [pixels(image, None)]})["train"]
    assert np.array_equal(stacked[0].numpy(), np.asarray(image).transpose(2, 0, 1))


def test_images_are_grey_only_if_all_of_all_splits_are() -> None:
    grey, colour = pixels(_image("L"), None), pixels(_image("RGB"), None)
    assert stack_splits({"train": [grey, grey], "test": [grey]})["train"].shape == (2, 1, 4, 5)
    mixed = stack_splits({"train": [grey, grey], "test": [grey, colour]})
    assert mixed["train"].shape == (2, 3, 4, 5)
    assert all(np.array_equal(channel, grey) for channel in mixed["test"][0].numpy())
    assert np.array_equal(mixed["test"][1].numpy(), colour.transpose(2, 0, 1))


def test_other_images_get_one_line() -> None:
    refusal(lambda: pixels(np.zeros((4, 4)), None), ["examples are images", "has ndarray", "choose"])
    refusal(lambda: pixels(Image.new("I", (4, 4)), None), ["8 bits per channel", "mode I", "convert"])
    small, wide = pixels(_image("RGB"), None), pixels(_image("RGB", (9, 4)), None)
    parts = ["one size", "example 1 of test is 9x4, the first of train 5x4", "set data.image_size"]
    refusal(lambda: stack_splits({"train": [small], "test": [small, wide]}), parts)
    refusal(lambda: stack_splits({"train": [small], "test": []}), ["each split has examples", "test has none"])
