"""Overlaps against brute force: every text with every other."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.data import overlap
from autocompress.data.overlap import overlapping

# Few letters, so that texts do contain each other; white space, for the ends; one beyond 16 bits.
TEXTS = st.lists(st.text("ab \U0001f600", max_size=9), max_size=8)
WORDS = ("all", "of", "the", "film", "s", "never", "a", "wonder", "less")


def brute_force(texts: Sequence[str], others: Sequence[str]) -> list[bool]:
    """The definition."""
    stripped = [other.strip() for other in others]
    return [any(text.strip() in other or other in text.strip() for other in stripped) for text in texts]


@given(TEXTS, TEXTS)
def test_overlaps_are_those_of_brute_force(texts: list[str], others: list[str]) -> None:
    assert overlapping(texts, others).tolist() == brute_force(texts, others)


@given(TEXTS, TEXTS, st.integers(1, 7))
def test_they_do_not_depend_on_how_many_characters_are_hashed_at_once(
    texts: list[str], others: list[str], characters: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CHUNK", characters)
        assert overlapping(texts, others).tolist() == brute_force(texts, others)


@given(TEXTS, TEXTS)
def test_texts_are_compared_where_hashes_collide(texts: list[str], others: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_codes", lambda text: np.ones(len(text), dtype=np.uint64))
        assert overlapping(texts, others).tolist() == brute_force(texts, others)


@pytest.mark.parametrize(
    ("text", "other", "overlaps"),
    [
        ("a good film", "good", True),
        ("good", "a good film", True),
        ("good film ", " good film", True),
        ("party", "art", True),
        ("Good", "a good film", False),
        ("good  film", "good film", False),
        ("good film", "film good", False),
        ("goo", "good film", True),
        ("", "anything", True),
        ("caf\u00e9", "cafe\u0301", False),
        ("\ud800 lone surrogate", "\ud800", True),
    ],
)
def test_overlap_is_verbatim_case_sensitive_and_blind_to_white_space_at_the_ends(
    text: str, other: str, overlaps: bool
) -> None:
    assert overlapping([text], [other]).tolist() == [overlaps]


def test_nothing_overlaps_with_nothing() -> None:
    assert overlapping(["a", ""], []).tolist() == [False, False]
    assert overlapping([], ["a"]).tolist() == []


def test_a_text_is_found_behind_and_before_others_but_not_across_two() -> None:
    others = ["xx", "abcdefgh", "ijklmnop", "yy"]
    assert overlapping(["efgh", "ijkl", "ghij", "hi", "yy"], others).tolist() == [True, True, False, False, True]


def test_texts_of_a_real_size_take_seconds_not_hours() -> None:
    generator = np.random.default_rng(0)
    lengths = np.concatenate([generator.integers(1, 20, 30_000), generator.integers(15, 40, 1_000)])
    texts = [" ".join(generator.choice(WORDS, length)) for length in lengths]
    train, validation = texts[:30_000], texts[30_000:]
    started = time.perf_counter()
    found = overlapping(train, validation)
    assert time.perf_counter() - started < 20
    sample = generator.choice(30_000, 300, replace=False)
    assert found[sample].tolist() == brute_force([train[row] for row in sample], validation)
    assert 0 < found.sum() < 30_000
