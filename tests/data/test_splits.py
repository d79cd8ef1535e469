"""Cuts against their definition: disjoint, whole, stratified, and decided by the seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from autocompress.config import DataSection
from autocompress.data.splits import Splits, check_labels, complete, cut, draw_calibration
from autocompress.data.task import Split

NAMES = ("ant", "bee", "cat")


def _config(validation: float = 0.1, test: float = 0.2) -> DataSection:
    return DataSection(source="a.b:c", validation_fraction=validation, test_fraction=test)


def _whole(counts: tuple[int, ...]) -> Split:
    """Examples numbered from 0, of these many per class, mixed."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return Split((torch.arange(len(labels)),), labels)


def _numbers(split: Split) -> list[int]:
    return [int(number) for number in split.inputs[0]]


@given(
    st.lists(st.integers(20, 60), min_size=2, max_size=5),
    st.floats(0.1, 0.3),
    st.floats(0.1, 0.3),
    st.sampled_from([("validation",), ("test",), ("validation", "test"), ()]),
)
def test_a_cut_is_disjoint_whole_and_stratified(
    counts: list[int], validation: float, test: float, missing: tuple[str, ...]
) -> None:
    labels = _whole(tuple(counts)).labels.numpy()
    rows = cut(len(labels), labels, list("abcde"), missing, _config(validation, test), seed=0)
    assert set(rows) == {"train", *missing}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(labels)))
    for name, fraction in (("validation", validation), ("test", test)):
        if name in missing:
            assert len(rows[name]) == round(fraction * len(labels))
            assert (np.diff(rows[name]) > 0).all()
            share = np.bincount(labels[rows[name]], minlength=len(counts)) - fraction * np.array(counts)
            assert np.abs(share).max() < 2


def test_a_cut_depends_on_the_seed_alone() -> None:
    whole = _whole((40, 60))
    first, again, other = (complete({"train": whole}, NAMES[:2], _config(), seed) for seed in (1, 1, 2))
    for (_, one), (_, same), (_, another) in zip(first.items(), again.items(), other.items(), strict=True):
        assert _numbers(one) == _numbers(same) != _numbers(another)


def test_targets_that_are_no_classes_are_cut_without_regard_to_them() -> None:
    whole = Split((torch.arange(50),), torch.arange(50).float() / 7)
    splits = complete({"train": whole}, (), _config(), seed=0)
    assert [len(split) for _, split in splits.items()] == [35, 5, 10]
    assert sorted(number for _, split in splits.items() for number in _numbers(split)) == list(range(50))


@pytest.mark.parametrize("given_split", ["validation", "test"])
def test_a_split_that_the_source_has_stays_as_it_is(given_split: str) -> None:
    own = _whole((3, 4))
    splits = complete({"train": _whole((40, 60)), given_split: own}, NAMES[:2], _config(), seed=0)
    assert getattr(splits, given_split) is own
    lengths = {name: len(split) for name, split in splits.items()}
    expected = {"validation": {"train": 80, "test": 20}, "test": {"train": 90, "validation": 10}}
    assert lengths == expected[given_split] | {given_split: 7}


def test_with_all_three_nothing_is_cut() -> None:
    given_splits = {"train": _whole((4, 4)), "validation": _whole((1, 1)), "test": _whole((2, 0))}
    assert dict(complete(given_splits, NAMES[:2], _config(), seed=0).items()) == given_splits


@pytest.mark.parametrize(
    ("counts", "validation", "parts"),
    [
        ((40, 2), 0.1, ["each class has an example for each split", "'bee' has 2 of 3", "add examples"]),
        ((40, 50), 0.01, ["each of 2 classes", "data.validation_fraction = 0.01 of 90 gives 1", "raise the fraction"]),
        ((2000, 3), 0.1, ["each class", "add"]),
    ],
)
def test_too_few_examples_get_one_line(counts: tuple[int, ...], validation: float, parts: list[str]) -> None:
    refusal(lambda: complete({"train": _whole(counts)}, NAMES, _config(validation), seed=0), parts)


def test_too_few_examples_without_classes_get_one_line() -> None:
    two = Split((torch.arange(2),), torch.zeros(2))
    refusal(lambda: complete({"train": two}, (), _config(), 0), ["each split has an example", "of 2 gives 0", "raise"])


@pytest.mark.parametrize(
    ("labels", "names", "parts"),
    [
        ({"train": [0, 1], "validation": []}, NAMES[:2], ["each split has examples", "validation has none"]),
        ({"train": [], "validation": [0]}, (), ["each split has examples", "train has none"]),
        ({"train": [0, 2], "validation": [0, 1, 2]}, NAMES, ["examples in train", "'bee' has none", "add some"]),
        ({"train": [0, 1, 2], "validation": [1, 0]}, NAMES, ["examples in validation", "'cat' has none"]),
        ({"train": [0, 0], "validation": [0]}, ("ant",), ["two classes or more", "only 'ant'", "correct"]),
    ],
)
def test_a_split_or_class_without_examples_is_named(
    labels: dict[str, list[int]], names: tuple[str, ...], parts: list[str]
) -> None:
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in labels.items()}
    refusal(lambda: check_labels(tensors, names), parts)


def test_a_class_may_be_absent_from_test() -> None:
    check_labels(
        {"train": torch.tensor([0, 1]), "validation": torch.tensor([1, 0]), "test": torch.tensor([1])}, NAMES[:2]
    )


def test_calibration_is_drawn_from_train_without_repetition() -> None:
    train = _whole((30, 30))
    drawn = _numbers(draw_calibration(train, 20, seed=4))
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn)
    assert drawn != _numbers(draw_calibration(train, 20, seed=5))
    assert _numbers(draw_calibration(train, 999, seed=4)) == list(range(60))


def test_splits_name_their_members_in_order() -> None:
    parts = [_whole((n, n)) for n in (3, 2, 1)]
    assert Splits(*parts).items() == (("train", parts[0]), ("validation", parts[1]), ("test", parts[2]))
